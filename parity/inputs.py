"""Prompt sets, their tokens and what goes with them. The only place that reads text and tokenizes it.

A set is a JSON Lines file; every line is an object with ``id``, ``text``, ``continuation`` and optionally
``prompt_tokens`` (keep only the first so many), ``images`` (pictures by name, or files relative to the set's, one for
every ``<image>`` in the text), or ``audio`` (a sound of the project by name, or a WAV file; the text, which may then be
empty, is what the transcript begins with). The text is all there is: a line break that a model was trained to see at
the end of a prompt is written there. The continuation is forced on every rung token by token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from models.authoring.config import EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.session import Tensors, session_inputs
from parity import isolated
from parity.errors import PromptError, UsageError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
#: Tokens of the forced continuation; a continuation that is shorter is refused.
CONTINUATION_TOKENS = 16


@dataclass(frozen=True)
class Prompt:
    """One line of a set."""

    id: str
    text: str
    continuation: str
    prompt_tokens: int | None = None
    images: tuple[str, ...] = ()
    audio: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """A named set; ``source`` is what a person would call it by, ``sha256`` is of the file's bytes."""

    name: str
    source: str
    sha256: str
    prompts: tuple[Prompt, ...]

    @property
    def is_text(self) -> bool:
        """Whether neither pictures nor sounds go with any prompt."""
        return not any(prompt.images or prompt.audio for prompt in self.prompts)


@dataclass(frozen=True)
class TokenizedPrompt:
    """Token ids of a prompt and of its forced continuation.

    ``media`` is what goes with them, by the names that the original has for it; an encoder makes ``encoded_rows`` rows
    of it.

    The rest is of prompts that are made for a ``situation`` (``parity/situations``). Such a prompt goes ``through``
    prefills of these lengths only: none of them means one token at a time, ``None`` whatever there is. After the
    continuation comes a second ``turn``, several tokens at once on the filled cache, and a forced ``reply`` to it.
    ``beside`` holds the tokens of a second row of the batch, as many as the prompt and its continuation; the prompt is
    the batch's ``row``. ``generates`` says whether free-running generation follows.
    """

    id: str
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    media: Tensors = field(default_factory=dict)
    encoded_rows: int = 0
    situation: str = ""
    through: tuple[int, ...] | None = None
    turn: tuple[int, ...] = ()
    reply: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()
    row: int = 0
    generates: bool = True

    @property
    def alone(self) -> TokenizedPrompt:
        """The prompt without the other row of its batch."""
        return replace(self, beside=(), row=0)

    @property
    def prefilled(self) -> int:
        """Positions that are compared in the phase ``prefill``: the prompt's, then the second turn's."""
        return len(self.prompt) + len(self.turn)

    @property
    def decoded(self) -> int:
        """Positions that are compared in the phase ``decode``: the continuation's, then the reply's."""
        return len(self.continuation) + len(self.reply)

    @property
    def positions(self) -> int:
        """Positions at which rungs are compared: all of them."""
        return self.prefilled + self.decoded

    def until(self, generate: int) -> int:
        """Cache slots that a session needs for what is forced or for ``generate`` free tokens, whichever is more."""
        return max(self.positions, len(self.prompt) + generate * self.generates)


@dataclass(frozen=True)
class Inputs:
    """What every rung is given: the same ids for all. ``name``, ``source`` and ``sha256`` are the prompt set's.

    Prompts that are made for situations count on ``prefill_lengths``; ``left_out`` says which situations do not apply,
    and why.
    """

    name: str
    source: str
    sha256: str
    tokenizer_sha256: str
    prompts: tuple[TokenizedPrompt, ...]
    prefill_lengths: tuple[int, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def situations(self) -> dict[str, Inputs]:
        """The prompts of each situation, in order; none for a plain prompt set."""
        names = dict.fromkeys(prompt.situation for prompt in self.prompts if prompt.situation)
        return {
            name: replace(self, prompts=tuple(prompt for prompt in self.prompts if prompt.situation == name))
            for name in names
        }

    @property
    def one_row(self) -> Inputs:
        """The prompts that are not rows of a batch: all that an exported file takes."""
        return replace(self, prompts=tuple(prompt for prompt in self.prompts if not prompt.beside))

    @property
    def positions(self) -> int:
        """Compared positions of the whole set."""
        return sum(prompt.positions for prompt in self.prompts)

    @property
    def token_ids_sha256(self) -> str:
        """Of the ids of all prompts and continuations."""
        ids = [(prompt.id, prompt.prompt, prompt.continuation) for prompt in self.prompts]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

    @property
    def media_sha256(self) -> str | None:
        """Of what was read from pictures and sounds, if anything was."""
        digest = hashlib.sha256()
        values = [
            value
            for prompt in self.prompts
            for value in prompt.media.values()
            if np.issubdtype(value.dtype, np.floating)
        ]
        for value in values:
            digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        return digest.hexdigest() if values else None


def read_prompts(name: str) -> PromptSet:
    """A set of the project by name, or any ``.jsonl`` file by path.

    Raises:
        UsageError: neither.
        PromptError: a line is not a prompt, or two have the same id.
    """
    source = files("parity") / "prompts" / f"{name}.jsonl"
    if not source.is_file():
        if not Path(name).is_file():
            known = sorted(
                file.name for file in (files("parity") / "prompts").iterdir() if file.name.endswith(".jsonl")
            )
            sets = ", ".join(name.removesuffix(".jsonl") for name in known)
            raise UsageError(
                f"no prompt set is called {name!r}; there are {sets}, the situations of docs/inputs.md, all of them "
                "as all, or give a .jsonl file"
            )
        source = Path(name)
    content = source.read_bytes()
    prompts = []
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    # Only line feeds end a line: JSON strings may hold the other separators that splitlines() knows as they are.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            prompts.append(_prompt(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise PromptError(f"{name}:{number} is no prompt ({error}); it needs id, text, continuation") from None
    if not prompts:
        raise PromptError(f"{name} holds no prompts; add at least one line")
    if len({prompt.id for prompt in prompts}) != len(prompts):
        raise PromptError(f"{name} has two prompts with the same id; ids name recordings, make them different")
    return PromptSet(Path(name).stem, name, hashlib.sha256(content).hexdigest(), tuple(prompts))


def _prompt(record: dict[str, Any]) -> Prompt:
    prompt = Prompt(**record)
    if not (isinstance(prompt.id, str) and isinstance(prompt.text, str) and isinstance(prompt.continuation, str)):
        raise TypeError("id, text and continuation are strings")
    if prompt.prompt_tokens is not None and (not isinstance(prompt.prompt_tokens, int) or prompt.prompt_tokens < 1):
        raise ValueError("prompt_tokens is a positive integer")
    if not isinstance(prompt.images, (list, tuple)) or not all(isinstance(name, str) for name in prompt.images):
        raise TypeError("images is a list of names")
    if prompt.images and prompt.prompt_tokens is not None:
        raise ValueError("a prompt with images is not cut to prompt_tokens")
    if prompt.audio is not None and not isinstance(prompt.audio, str):
        raise TypeError("audio is the name of a sound or the path of a WAV file")
    return replace(prompt, images=tuple(prompt.images))


def tokenize(prompts: PromptSet, folder: Path, config: ModelConfig, continuation: int = CONTINUATION_TOKENS) -> Inputs:
    """Token ids of a set, by the tokenizer in the checkpoint folder; ``continuation`` tokens are forced after each.

    Raises:
        PromptError: no tokenizer, an id beyond the vocabulary, or a prompt or continuation of too few tokens.
    """
    return isolated.run("tokenizing", partial(_tokenize, prompts, folder, config, continuation)).value


@dataclass(frozen=True, kw_only=True)
class Material:
    """What prompts are made from: ids of natural text, and what the tokenizer puts before and after one.

    ``special`` are the tokenizer's own marks (begin, end, unknown, padding); ``sets`` are whole prompt sets.
    """

    text: tuple[int, ...]
    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    special: tuple[int, ...] = ()
    sets: tuple[Inputs, ...] = ()
    tokenizer_sha256: str = ""


def read_material(text: PromptSet, sets: Sequence[PromptSet], folder: Path, config: ModelConfig) -> Material:
    """The ``sets``, and everything that ``text`` says as one text, by the tokenizer in the checkpoint folder.

    Raises:
        PromptError: as ``tokenize``.
    """
    return isolated.run("tokenizing", partial(_read_material, text, tuple(sets), folder, config)).value


def _read_material(
    text: PromptSet, sets: tuple[PromptSet, ...], folder: Path, config: ModelConfig, progress: isolated.Progress
) -> Material:
    read = tuple(_tokenize(prompts, folder, config, CONTINUATION_TOKENS, progress) for prompts in sets)
    tokenizer = _tokenizer(folder)
    natural = "\n\n".join(prompt.text + prompt.continuation for prompt in text.prompts)
    plain, marked = (tuple(tokenizer(natural, add_special_tokens=add).input_ids) for add in (False, True))
    starts = (at for at in range(len(marked) - len(plain) + 1) if marked[at : at + len(plain)] == plain)
    begin = next(starts, 0)
    marks = (getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "unk", "pad"))
    return Material(
        text=plain,
        begins=marked[:begin],
        ends=marked[begin + len(plain) :],
        special=tuple(dict.fromkeys(mark for mark in marks if mark is not None and mark < config.vocab_size)),
        sets=read,
        tokenizer_sha256=_sha256_of_tokenizer(folder),
    )


def _sha256_of_tokenizer(folder: Path) -> str:
    from parity.files import sha256_of

    return sha256_of(tokenizer_files(folder))


def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint folder; nothing of it is run or fetched."""
    from transformers import AutoTokenizer

    if not tokenizer_files(folder):
        raise PromptError(f"{folder} has no tokenizer; copy the tokenizer files of the original into it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise PromptError(
            f"the tokenizer in {folder} cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from None


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide how text becomes ids."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _tokenize(
    prompts: PromptSet, folder: Path, config: ModelConfig, forced: int, progress: isolated.Progress
) -> Inputs:
    from parity.media.images import ImageReader, with_images

    tokenizer = _tokenizer(folder)
    images = ImageReader(folder, config) if isinstance(config, VisionLanguageConfig) else None
    beside = Path(prompts.source).parent
    tokenized: list[TokenizedPrompt] = []
    for number, prompt in enumerate(prompts.prompts):
        progress(number, len(prompts.prompts))
        if prompt.images and not images:
            raise PromptError(f"prompt {prompt.id} has images, which the model cannot see; choose other prompts")
        media = images.read(prompt.id, prompt.images, beside) if images else _heard(prompt, beside, folder, config)
        if images:
            ids = with_images(prompt.id, prompt.text, tokenizer, images.config, media)[: prompt.prompt_tokens]
        else:
            ids = tokenizer(prompt.text, add_special_tokens=not media).input_ids[: prompt.prompt_tokens]
        continuation = tokenizer(prompt.continuation, add_special_tokens=False).input_ids[:forced]
        if not ids and prompt.audio is None:
            raise PromptError(f"prompt {prompt.id} has no tokens; give it some text")
        if len(continuation) < forced:
            raise PromptError(
                f"the continuation of {prompt.id} has {len(continuation)} tokens, not {forced}; lengthen it"
            )
        worst = max([*ids, *continuation], default=0)
        if worst >= config.vocab_size:
            raise PromptError(
                f"the tokenizer in {folder} emits id {worst} for prompt {prompt.id}, the model has {config.vocab_size} "
                "rows; the tokenizer belongs to another model"
            )
        tokenized.append(tokenized_prompt(prompt.id, ids, continuation, config, media))
    return Inputs(prompts.name, prompts.source, prompts.sha256, _sha256_of_tokenizer(folder), tuple(tokenized))


def _heard(prompt: Prompt, beside: Path, folder: Path, config: ModelConfig) -> Tensors:
    """The sound that the prompt names, prepared for the model in ``folder``; files are ``beside`` the set."""
    stem = config.stem if isinstance(config, EncoderDecoderConfig) else None
    if prompt.audio is None and stem is None:
        return {}
    if prompt.audio is None or stem is None:
        wrong = "no audio, and this model writes what it hears" if stem else "audio, and this model hears nothing"
        raise PromptError(f"prompt {prompt.id} has {wrong}; choose another prompt set")
    from parity.media.sounds import heard

    return heard(prompt.audio, beside, folder, stem)


def tokenized_prompt(
    name: str, ids: list[int], continuation: list[int], config: ModelConfig, media: Tensors
) -> TokenizedPrompt:
    """Where the text goes: into the language model, or into an encoder while the decoder begins with a fixed token.

    An encoder that is given something else leaves the text to the decoder.
    """
    if isinstance(config, EncoderDecoderConfig):
        if media:
            ids = [config.decoder_start, *ids]
        else:
            ids, media = [config.decoder_start], {"input_ids": np.asarray([ids], np.int64)}
    calls = session_inputs(config, ids, media, len(ids)).calls
    return TokenizedPrompt(name, tuple(ids), tuple(continuation), media, sum(call.rows for call in calls))
