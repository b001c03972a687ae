"""What is known of a made file besides its bytes, written as JSON and read back.

Reading trusts nothing: a value of the wrong kind is a ``TypeError`` or ``ValueError``, a missing one a ``KeyError``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.convert.float_file import Export, FloatFile
from parity.convert.quantize import WeightPrecision
from parity.convert.rounding import Rounding
from parity.convert.stages import StagedFile
from parity.files import write_json
from parity.inputs import Inputs, PromptSet, TokenizedPrompt
from parity.runners.stages import Layout


def write_float(file: FloatFile) -> Any:
    """All but where it is and what it was exported as, which whoever asks for it knows."""
    return {"signatures": file.signatures, "names": file.names, "seconds": dict(file.seconds)}


def read_float(value: Any, path: Path, export: Export) -> FloatFile:
    """The float file at ``path``."""
    seconds = {name: _number(spent) for name, spent in _items(value["seconds"]).items()}
    return FloatFile(path, export, _texts(value["signatures"]), _texts(value["names"]), seconds)


def write_staged(staged: StagedFile) -> Any:
    """The float file, and how its signatures hang together."""
    return {
        "file": write_float(staged.file),
        "layout": {"cache_length": staged.layout.cache_length, "signatures": staged.layout.signatures},
        "stages": staged.stages,
        "given": staged.given,
        "cache": staged.cache,
    }


def read_staged(value: Any, path: Path, export: Export) -> StagedFile:
    """The diagnostic file at ``path``."""
    layout = value["layout"]
    signatures = {name: _shapes(inputs) for name, inputs in _items(layout["signatures"]).items()}
    return StagedFile(
        read_float(value["file"], path, export),
        Layout(_whole(layout["cache_length"]), signatures),
        {
            name: [(_text(stage), _texts(inputs)) for stage, inputs in stages]
            for name, stages in _items(value["stages"]).items()
        },
        {name: _texts(outputs) for name, outputs in _items(value["given"]).items()},
        _shapes(value["cache"]),
    )


def write_precisions(found: list[WeightPrecision]) -> Any:
    """How every weight is stored."""
    return [
        [
            each.name,
            each.precision,
            each.asked,
            each.rounding and [each.rounding.steps, each.rounding.coarseness],
            each.dynamic,
        ]
        for each in found
    ]


def read_precisions(value: Any) -> list[WeightPrecision]:
    """The same, read back."""
    return [
        WeightPrecision(
            _text(name),
            _text(precision),
            None if asked is None else _text(asked),
            None if rounding is None else Rounding(*map(_number, rounding)),
            _truth(dynamic),
        )
        for name, precision, asked, rounding, dynamic in value
    ]


def read_note(value: Any) -> str:
    """What a session said of where it was from."""
    return _text(value)


def write_tokens(inputs: Inputs, path: Path) -> None:
    """The ids of prompts that are nothing but text."""
    prompts = [(prompt.id, prompt.prompt, prompt.continuation) for prompt in inputs.prompts]
    write_json(path, {"tokenizer": inputs.tokenizer_sha256, "prompts": prompts})


def read_tokens(prompts: PromptSet, path: Path) -> Inputs:
    """The same, read back, as the inputs that ``prompts`` make."""
    document = json.loads(path.read_text(encoding="utf-8"))
    tokenized = tuple(
        TokenizedPrompt(_text(name), tuple(map(_whole, ids)), tuple(map(_whole, forced)))
        for name, ids, forced in document["prompts"]
    )
    return Inputs(prompts.name, prompts.source, prompts.sha256, _text(document["tokenizer"]), tokenized)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return tuple(map(_text, value))


def _number(value: Any) -> float:
    if not isinstance(value, float):
        raise TypeError(f"{value!r} is no number")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _items(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} has no names")
    return value


def _shapes(value: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(_whole, shape)) for name, shape in _items(value).items()}
