"""Sounds: what is made is the same everywhere, what is read is converted, and what cannot be heard is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from models import registry
from models.authoring.config import AudioStemConfig
from models.authoring.hf_config import HFConfig
from parity import golden, isolated
from parity.errors import PromptError
from parity.inputs import Inputs, Prompt, PromptSet, read_prompts, tokenize
from parity.media.sounds import PROCESSOR, RATE, SOUNDS, heard, samples_of
from parity.weights import resolve

STEM = AudioStemConfig(kernels=(127, 7, 3), strides=(64, 3, 2), norm_eps=1e-5)
#: Of the samples as int16: the same bits on every machine, which recordings rely on.
HASHES = {
    "syllable": "72526f6bb09c03d7",
    "vowels": "45b556298f363477",
    "chirp": "929f4e607a4bbe7f",
    "bursts": "5effe80e56024d84",
    "sentence": "8646470a23ad4dc5",
    "babble": "276df481d00a01a9",
}


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    """Libraries are imported once for all that is tokenized here."""
    isolated.prepare(converter=False)


def tone(rate: int = RATE, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return 0.25 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def written(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    wavfile.write(path, rate, samples)
    return path


def hear(path: Path, checkpoint: Path | None = None) -> np.ndarray:
    return heard(path.name, path.parent, checkpoint or path.parent, STEM)["input_values"][0]


@pytest.mark.parametrize("name", list(SOUNDS))
def test_a_made_sound_is_the_same_everywhere(name: str) -> None:
    """Sixteen bits, neither silent nor clipped."""
    samples = samples_of(name, Path())
    stored = samples * 32768
    assert samples.dtype == np.float32
    assert np.array_equal(stored, np.rint(stored))
    assert hashlib.sha256(stored.astype("<i2").tobytes()).hexdigest()[:16] == HASHES[name]
    assert 0.3 < np.abs(samples).max() < 0.5
    assert 0.02 < samples.std() < 0.4


def test_lengths_of_the_speech_set_are_unlike() -> None:
    """At least six, from half a second to three, none a multiple of another's rows or frames."""
    prompts = read_prompts("speech").prompts
    lengths = [len(samples_of(prompt.audio or "", Path())) for prompt in prompts]
    assert len(lengths) >= 6
    assert 0.45 < min(lengths) / RATE < 0.55
    assert 2.5 < max(lengths) / RATE < 3.5
    for a, b in permutations(lengths, 2):
        assert STEM.rows(a) % STEM.rows(b)
        assert ((a - 127) // 64 + 1) % ((b - 127) // 64 + 1)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_every_way_to_store_samples(tmp_path: Path, kind: type[np.generic]) -> None:
    """Integers are fractions of their range; eight bits have their zero in the middle."""
    exact = tone()
    stored = exact.astype(kind)
    if np.issubdtype(kind, np.integer):
        info = np.iinfo(kind)
        stored = np.rint(exact * 2.0 ** (info.bits - 1) + (128 if kind == np.uint8 else 0)).astype(kind)
    found = hear(written(tmp_path / "a.wav", stored))
    assert np.abs(found - exact).max() < (0.01 if kind == np.uint8 else 1e-4)


def test_twenty_four_bits(tmp_path: Path) -> None:
    """Which the library widens."""
    values = np.rint(tone() * 2**23).astype("<i4")
    data = values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    header = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 3, 3, 24) + b"data" + struct.pack("<I", len(data))
    (tmp_path / "a.wav").write_bytes(header + data)
    assert np.abs(hear(tmp_path / "a.wav") - tone()).max() < 1e-6


def test_stereo_is_averaged(tmp_path: Path) -> None:
    """Two channels of which one is silent are half as loud."""
    left = tone().astype(np.float32)
    found = hear(written(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], 1)))
    np.testing.assert_allclose(found, left / 2, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    """A tone stays the tone it was, apart from its ends."""
    found = hear(written(tmp_path / "a.wav", tone(rate).astype(np.float32), rate))
    assert len(found) == pytest.approx(RATE / 2, abs=1)
    np.testing.assert_allclose(found[500:-500], tone()[: len(found)][500:-500], rtol=0, atol=2e-3)


def test_a_title_in_the_file_is_no_damage(tmp_path: Path) -> None:
    """Chunks that the library does not know are passed over without a word."""
    path = written(tmp_path / "a.wav", tone().astype(np.float32))
    path.write_bytes(path.read_bytes() + b"abcd" + struct.pack("<I", 4) + b"....")
    np.testing.assert_allclose(hear(path), tone(), rtol=0, atol=1e-7)


def refusal(path: Path) -> str:
    """The one line that says why, which names the file."""
    with pytest.raises(PromptError) as caught:
        hear(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        (np.zeros(8000, np.int16), "silence"),
        (np.full(8000, 128, np.uint8), "silence"),
        (np.full(8000, 0.5, np.float32), "silence"),
        (np.zeros(0, np.int16), "no samples"),
        (np.ones(894, np.int16), "894 samples"),
        (np.where(np.arange(8000) == 4000, np.nan, 0.1).astype(np.float32), "NaN"),
        (np.where(np.arange(8000) == 4000, np.inf, 0.1).astype(np.float32), "NaN or infinity"),
        (np.arange(61 * RATE, dtype=np.float32) % 7, "61 s"),
    ],
    ids=["silence", "silence in 8 bits", "constant", "empty", "too short", "NaN", "infinity", "too long"],
)
def test_what_cannot_be_heard_is_refused(tmp_path: Path, samples: np.ndarray, named: str) -> None:
    """With what is wrong."""
    assert named in refusal(written(tmp_path / "a.wav", samples))


@pytest.mark.parametrize("rate", [0, 100, 500_000, 2**31])
def test_rates_that_no_recording_has(tmp_path: Path, rate: int) -> None:
    """They would need endless memory."""
    path = written(tmp_path / "a.wav", tone().astype(np.float32))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("kept", [0, 3, 4, 11, 12, 20, 30, 40, 44, 60, 2000, 15000])
def test_truncated_files(tmp_path: Path, kept: int) -> None:
    """Wherever the file ends."""
    path = written(tmp_path / "a.wav", (tone() * 32768).astype(np.int16))
    path.write_bytes(path.read_bytes()[:kept])
    refusal(path)


def test_no_wav_file(tmp_path: Path) -> None:
    """Text, a picture's header, nothing at all."""
    path = tmp_path / "a.wav"
    for content in (b"hello, world" * 100, b"\x89PNG\r\n\x1a\n" + bytes(200), b"RIFF" + bytes(100), bytes(1000)):
        path.write_bytes(content)
        refusal(path)
    path.unlink()
    assert "vowels" in refusal(path)


def test_headers_with_changed_bytes(tmp_path: Path) -> None:
    """Whatever the header claims: finite samples, or a refusal, and nothing else."""
    good = written(tmp_path / "good.wav", (tone(seconds=0.1) * 32768).astype(np.int16)).read_bytes()
    path = tmp_path / "a.wav"
    for position in range(44):
        for value in (0, 1, 127, 255):
            content = bytearray(good)
            content[position] = value
            path.write_bytes(content)
            with suppress(PromptError):
                assert np.isfinite(hear(path)).all()


def test_processor_must_be_for_these_samples(tmp_path: Path) -> None:
    """Its rate is the model's; one that cannot be read is named; one that normalizes is obeyed."""
    values = dict(registry.get("moonshine-tiny").preset.processor)
    path = written(tmp_path / "a.wav", tone().astype(np.float32))
    (tmp_path / PROCESSOR).write_text(json.dumps(values))
    np.testing.assert_array_equal(hear(path), tone().astype(np.float32))
    (tmp_path / PROCESSOR).write_text(json.dumps({**values, "do_normalize": True}))
    assert hear(path).std() == pytest.approx(1.0, rel=1e-3)
    for wrong, named in ((json.dumps({**values, "sampling_rate": 8000}), "8000"), ("{", PROCESSOR), ("{}", PROCESSOR)):
        (tmp_path / PROCESSOR).write_text(wrong)
        with pytest.raises(PromptError, match=named):
            hear(path)


def read(audio: str | None, text: str = "", model: str = "moonshine-tiny", source: str = "") -> Inputs:
    found = registry.get(model)
    folder = resolve(found, "tiny").folder
    prompts = PromptSet("one", source, "", (Prompt("one", text, "a b c d e f g h i j k l", audio=audio),))
    return tokenize(prompts, folder, found.family.config_from(HFConfig.load(folder)))


def test_text_is_what_the_transcript_begins_with(tmp_path: Path) -> None:
    """After the token that every transcript begins with; a file is found beside the prompt set."""
    written(tmp_path / "a.wav", tone().astype(np.float32))
    (bare,) = read("a.wav", source=str(tmp_path / "set.jsonl")).prompts
    (begun,) = read("a.wav", "He", source=str(tmp_path / "set.jsonl")).prompts
    assert (bare.prompt, begun.prompt[:1], bare.encoded_rows) == ((1,), (1,), STEM.rows(8000))
    assert len(begun.prompt) > 1
    assert begun.continuation == bare.continuation
    np.testing.assert_array_equal(bare.media["input_values"][0], tone().astype(np.float32))


def test_prompts_and_models_that_do_not_fit() -> None:
    """A model that hears needs audio, one that reads has no use for it."""
    with pytest.raises(PromptError, match="prompt one has no audio"):
        read(None, "hello")
    for model in ("t5-small", "amd-llama-135m"):
        with pytest.raises(PromptError, match="prompt one has audio"):
            read("vowels", "hello", model)


def test_what_is_heard_is_part_of_a_recordings_identity() -> None:
    """Other samples make a recording stale; prompts of text alone have nothing to say about it."""
    weights = resolve(registry.get("moonshine-tiny"), "tiny")
    one, same, other = (golden.identity(weights, read(audio)) for audio in ("vowels", "vowels", "chirp"))
    assert one == same
    assert {key for key in one if one[key] != other[key]} == {"media"}
    assert "media" not in golden.identity(weights, read(None, "hello", "t5-small"))
