"""Sounds: speech-like ones made here, bit for bit the same everywhere, and recordings read from WAV files.

A made sound is a pulse train at a voice's pitch through resonances at the formants of English vowels (Peterson and
Barney, 1952), noise for consonants, glides, and pauses. It is rounded to 16 bits as a recording would be, which takes
away what libraries and machines differ by in the last bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.authoring.config import AudioStemConfig
from parity.errors import PromptError

Samples = NDArray[np.float32]

#: Samples a second, of everything that a model hears.
RATE = 16_000
#: Attention grows with the square of the length; a longer recording is for a person to cut.
MOST_SECONDS = 60
#: Rates that are resampled; others are no recording of speech.
RATES = range(4_000, 384_001)
PROCESSOR = "preprocessor_config.json"

_PEAK = 0.4
_BACKGROUND = 0.002
_FORMANTS = {"a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (270, 2290, 3010), "o": (570, 840, 2410)}
_BANDWIDTH = 90.0


@dataclass(frozen=True)
class _Segment:
    """``kind`` is a vowel's letter, ``s`` (noise), ``/`` (a glide through ``start`` to ``end`` Hz), or a pause."""

    kind: str
    seconds: float
    start: float = 0.0
    end: float = 0.0


def _voice(score: str, pitch: float, last: float) -> tuple[_Segment, ...]:
    """``a210 s90 -120``: what to say, for how many milliseconds, at a pitch that moves from the first to the last."""
    words = score.split()
    pitches = np.linspace(pitch, last, len(words) + 1).tolist()
    return tuple(
        _Segment(word[0], int(word[1:]) / 1000, pitches[i], pitches[i + 1] * 0.97) for i, word in enumerate(words)
    )


#: One or more voices each, that speak at once.
SOUNDS: Mapping[str, tuple[tuple[_Segment, ...], ...]] = {
    "syllable": (_voice("s70 a431", 130, 105),),
    "vowels": (_voice("a231 -37 e187 i223 -61 o319", 120, 160),),
    "chirp": ((_Segment("/", 0.41, 180, 3400), _Segment("-", 0.053), _Segment("/", 0.27, 2900, 240)),),
    "bursts": (_voice("s83 -140 s51 -90 s204 -170 s133 -44", 100, 100),),
    "sentence": (_voice("s90 e160 -40 o210 s60 i140 a190 -150 s80 o120 e230 s127", 180, 120),),
    "babble": (
        _voice("a240 s80 i310 -160 o290 e220 s90 a350 -210 i260 s70 o340 e227", 110, 95),
        _voice("-170 e280 o190 s110 -130 a330 i250 -90 s60 e370 o210 a283", 205, 230),
        _voice("o410 -260 s120 a190 e330 -180 i290 o230 s100 a260", 150, 140),
    ),
}


def samples_of(audio: str, beside: Path) -> Samples:
    """Samples ``[S]`` at ``RATE`` of a sound by name, or of a WAV file whose path starts from the folder ``beside``.

    Raises:
        PromptError: neither, or the file is no recording.
    """
    if audio in SOUNDS:
        return _made(audio)
    path = beside / audio
    if not path.is_file():
        raise PromptError(f"{audio} is no sound ({', '.join(SOUNDS)}) and {path} is no file; give one of them")
    return _read(path)


def heard(audio: str, beside: Path, checkpoint: Path, stem: AudioStemConfig) -> dict[str, NDArray[Any]]:
    """What the original is given of ``audio``: ``input_values`` float32 ``[1, S]``, by the checkpoint's own processor.

    Raises:
        PromptError: there is nothing to hear, or too much, or the processor is not for such samples.
    """
    samples = samples_of(audio, beside)
    if not np.isfinite(samples).all():
        raise PromptError(f"{audio} holds NaN or infinity; record it again")
    if len(samples) < stem.shortest:
        raise PromptError(
            f"{audio} has {len(samples)} samples at {RATE} Hz, the model needs {stem.shortest}; make it longer"
        )
    if len(samples) > MOST_SECONDS * RATE:
        seconds = len(samples) / RATE
        raise PromptError(f"{audio} is {seconds:.0f} s long, more than {MOST_SECONDS}; cut it into pieces")
    if np.ptp(samples) == 0:
        raise PromptError(f"{audio} is silence, every sample is {samples[0]:g}; there is nothing to compare")
    return {"input_values": _processed(samples, checkpoint)}


def _processed(samples: Samples, checkpoint: Path) -> Samples:
    """``[S]`` -> ``[1, S]`` as the processor beside the weights has it, or as it is where there is none."""
    if not (checkpoint / PROCESSOR).is_file():
        return samples[None]
    from transformers import AutoFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise PromptError(f"{checkpoint / PROCESSOR} cannot be used ({said}); fetch the file again") from None
    rate = getattr(extractor, "sampling_rate", None)
    if rate != RATE:
        raise PromptError(
            f"{checkpoint / PROCESSOR} is for {rate} samples a second, the model hears {RATE}; fetch the file again"
        )
    made: Samples = np.asarray(extractor(samples, sampling_rate=RATE, return_tensors="np")["input_values"], np.float32)
    if made.shape != (1, len(samples)):
        shape = list(made.shape)
        raise PromptError(f"{checkpoint / PROCESSOR} makes {shape} of {len(samples)} samples; fetch the file again")
    return made


def _read(path: Path) -> Samples:
    """A WAV file as ``[S]`` in -1..1 at ``RATE``: its channels are averaged, another rate is resampled."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a truncated file is read with a warning only
        warnings.filterwarnings("ignore", message="Chunk .* not understood")  # a title, a cue
        try:
            rate, stored = wavfile.read(path)
        except Exception as error:  # noqa: BLE001  (a damaged header can raise anything)
            said = " ".join(str(error).split())[:200]
            raise PromptError(f"{path} is damaged or no WAV file ({said}); record it again") from None
    if rate not in RATES:
        raise PromptError(f"{path} has {rate} samples a second; {RATES.start} to {RATES.stop - 1} can be resampled")
    samples = _in_units(stored)
    if not len(samples):
        raise PromptError(f"{path} holds no samples; record it again")
    if rate != RATE:
        common = math.gcd(RATE, rate)
        samples = resample_poly(samples, RATE // common, rate // common)
    return samples.astype(np.float32)


def _in_units(stored: NDArray[Any]) -> NDArray[np.float64]:
    """Stored samples ``[S]`` or ``[S, channels]`` as one channel; the largest integer is 1."""
    values = stored.astype(np.float64)
    if np.issubdtype(stored.dtype, np.integer):
        half = 2.0 ** (8 * stored.dtype.itemsize - 1)
        values = (values - half if stored.dtype == np.uint8 else values) / half
    return values if values.ndim == 1 else values.mean(axis=1)


def _made(name: str) -> Samples:
    """One of ``SOUNDS``, ``[S]``."""
    noise = np.random.Philox(key=int.from_bytes(name.encode()[:8], "little"))
    voices = [np.concatenate([_segment(part, noise) for part in voice]) for voice in SOUNDS[name]]
    mixed = np.zeros(max(map(len, voices)))
    for voice in voices:
        mixed[: len(voice)] += voice
    mixed = _PEAK * mixed / np.abs(mixed).max() + _BACKGROUND * _noise(len(mixed), noise)
    made: Samples = (np.rint(mixed * 32768) / 32768).astype(np.float32)
    return made


def _noise(count: int, stream: np.random.Philox) -> NDArray[np.float64]:
    """Uniform in -1..1."""
    return (stream.random_raw(count) >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def _segment(part: _Segment, stream: np.random.Philox) -> NDArray[np.float64]:
    """Rises and falls within a fiftieth of a second, so that nothing clicks."""
    count = round(part.seconds * RATE)
    turns = np.cumsum(np.linspace(part.start, part.end, count)) / RATE
    match part.kind:
        case "-":
            return np.zeros(count)
        case "/":
            made = np.sin(2 * math.pi * turns)
        case "s":
            made = _resonant(_noise(count, stream), (4100, 5700))
        case vowel:
            pulses = np.diff(np.floor(turns), prepend=0.0) + 0.02 * _noise(count, stream)
            made = _resonant(pulses, _FORMANTS[vowel])
    edge = min(count // 2, RATE // 50)
    ramp = np.minimum(1.0, np.arange(1, count + 1) / edge)
    shaped: NDArray[np.float64] = made / np.abs(made).max() * ramp * ramp[::-1]
    return shaped


def _resonant(source: NDArray[np.float64], frequencies: tuple[int, ...]) -> NDArray[np.float64]:
    """``source`` through a resonance at each of the frequencies, one after the other."""
    from scipy.signal import lfilter

    decay = math.exp(-math.pi * _BANDWIDTH / RATE)
    for frequency in frequencies:
        source = lfilter([1.0], [1.0, -2 * decay * math.cos(2 * math.pi * frequency / RATE), decay**2], source)
    return source
