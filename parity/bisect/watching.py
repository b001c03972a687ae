"""Who watches a session that runs stage by stage: one that compares, one that records, one that keeps a single call."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.authoring.config import ModelConfig, VisionLanguageConfig, WindowedVisionConfig
from models.authoring.session import grid_of
from parity.compare.bisect import Place, RowErrors, Tally, compare_rows
from parity.files import whole_file
from parity.inputs import TokenizedPrompt
from parity.runners.boundaries import Rows
from parity.runners.driver import Tensor
from parity.runners.stages import Call, Stages
from parity.trace import SIGNATURES

#: Tensors that are rows of the stream, or become so: their first two axes count rows.
_ROWS = ("hidden", "encoded", "logits", "cross_k_", "cross_v_")
#: What every side keeps for itself.
_CACHE = "kv_cache_"


class Expected(NamedTuple):
    """What a stage should have made; ``known`` are the rows of which that is known, ``None`` for all."""

    value: Tensor
    known: NDArray[np.bool_] | None = None


class Reference(Protocol):
    """Something that knows what stages should make."""

    def expected(
        self, call: Call, stage: str, inputs: Mapping[str, Tensor], made: Mapping[str, Tensor]
    ) -> dict[str, Expected]:
        """Of those of the tensors ``made`` that it knows, in the shapes that they have there."""


class RowsReference:
    """One prompt's boundaries of an original, row after row as they are asked for."""

    def __init__(self, rows: Rows, config: ModelConfig, prompt: TokenizedPrompt) -> None:
        self.rows = rows
        forced = (len(prompt.prompt), *[1] * len(prompt.continuation), len(prompt.turn), *[1] * len(prompt.reply))
        #: Where calls end that may be padded: after each run of tokens that are taken together.
        self.ends = list(accumulate(forced))
        self.vision = config.vision if isinstance(config, VisionLanguageConfig) else None
        self.image_token = config.image_token if isinstance(config, VisionLanguageConfig) else None
        self.taken: Counter[str] = Counter()

    def expected(
        self, call: Call, stage: str, inputs: Mapping[str, Tensor], made: Mapping[str, Tensor]
    ) -> dict[str, Expected]:
        # The original embeds words and puts the rows of pictures among them before anyone else sees either.
        source = "embed" if stage == "place" else stage
        found = {}
        for tensor, value in made.items():
            name = f"{source}/{tensor}"
            if name in self.rows:
                found[tensor] = self._next(call, stage, tensor, self.rows[name], value)
        if stage == "embed" and "hidden" in found and self.image_token is not None:
            words = inputs["tokens"].reshape(-1) != self.image_token
            found["hidden"] = found["hidden"]._replace(known=words)
        return found

    def _next(self, call: Call, stage: str, tensor: str, rows: NDArray[Any], value: Tensor) -> Expected:
        """As many rows as ``value`` has, padding aside, from where the last call of this stage has left off."""
        patches = self._patches(call, stage)
        room = math.prod(value.shape[:2])
        start = self.taken[f"{stage}/{tensor}"]
        if patches is not None:
            count = int(patches.max()) + 1
        elif call.phase == "encode":
            count = room
        else:
            count = min(room, next(end for end in self.ends if end > start) - start)
        self.taken[f"{stage}/{tensor}"] += count
        taken = rows[start : start + count]
        if patches is None and count == room:
            return Expected(taken.reshape(value.shape))
        if patches is None:
            padded = np.concatenate([taken, np.zeros((room - count, *taken.shape[1:]), taken.dtype)])
            return Expected(padded.reshape(value.shape), np.arange(room) < count)
        real = np.zeros(len(patches), bool)
        real[np.unique(patches, return_index=True)[1]] = True
        return Expected(taken[patches].reshape(value.shape), real)

    def _patches(self, call: Call, stage: str) -> NDArray[np.int64] | None:
        """The patch in each slot of a tower whose stream lies in windows; slots to fill up hold the first one."""
        if not isinstance(self.vision, WindowedVisionConfig) or call.phase != "encode" or stage == "merger":
            return None
        from models.authoring.windowed_vision import Frame

        down, across = grid_of(call.entry) or (0, 0)
        patches: NDArray[np.int64] = Frame.of(self.vision, (down, across)).patches.numpy()
        return patches


class CallsReference:
    """One prompt's calls as ``Recorder`` has kept them: everything that stages made but the cache."""

    def __init__(self, recorded: Mapping[str, Tensor]) -> None:
        self.recorded = recorded

    def expected(
        self,
        call: Call,
        stage: str,
        inputs: Mapping[str, Tensor],  # noqa: ARG002
        made: Mapping[str, Tensor],
    ) -> dict[str, Expected]:
        if stage == SIGNATURES:  # no stage: what the only one that makes a tensor has made of it
            here = [name.split("/") for name in self.recorded if name.startswith(f"{call.number}/")]
            names = {tensor: f"{number}/{maker}/{tensor}" for number, maker, tensor in here if tensor in made}
        else:
            names = {tensor: f"{call.number}/{stage}/{tensor}" for tensor in made}
        return {tensor: Expected(self.recorded[name]) for tensor, name in names.items() if name in self.recorded}


class LiveReference:
    """The re-authored model itself, run on whatever a call is given; the cache counts."""

    def __init__(self, models: Mapping[int, Stages]) -> None:
        self.models = models

    def expected(
        self,
        call: Call,
        stage: str,  # noqa: ARG002
        inputs: Mapping[str, Tensor],
        made: Mapping[str, Tensor],  # noqa: ARG002
    ) -> dict[str, Expected]:
        (step,) = self.models[call.cache_length].steps(call.entry, call.length)
        return {tensor: Expected(value) for tensor, value in step.run(inputs).items()}


class Recorder:
    """Keeps what every stage of one prompt makes, the cache aside."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(
        self, call: Call, stage: str, _: Mapping[str, Tensor], made: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        for tensor, value in made.items():
            if not tensor.startswith(_CACHE):
                self.kept[f"{call.number}/{stage}/{tensor}"] = np.array(value)
        return {}

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        from safetensors.numpy import save_file

        with whole_file(path) as temporary:
            save_file({name: np.ascontiguousarray(value) for name, value in self.kept.items()}, temporary)


class Comparer:
    """Tallies how far stages are off; ``feeding`` gives every stage what the reference made before it."""

    def __init__(self, reference: Reference, tally: Tally, *, feeding: bool) -> None:
        self.reference = reference
        self.tally = tally
        self.feeding = feeding

    def __call__(
        self, call: Call, stage: str, inputs: Mapping[str, Tensor], made: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        expected = self.reference.expected(call, stage, inputs, made)
        for tensor, want in expected.items():
            errors = _errors(tensor, want, made[tensor])
            if len(errors.squared_error):
                self.tally.add(Place(call.phase, stage), tensor, errors)
        return _fed(expected, made) if self.feeding else {}


@dataclass(frozen=True)
class Sample:
    """One call of one stage: what it was given, what it should have made of it, what it made."""

    call: Call
    stage: str
    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    got: Mapping[str, Tensor]


class Keeper:
    """Feeds like ``Comparer`` and keeps the call in which the stage at ``place`` is furthest off."""

    def __init__(self, reference: Reference, place: Place) -> None:
        self.reference = reference
        self.place = place
        self.sample: Sample | None = None
        self.error = -1.0

    def __call__(
        self, call: Call, stage: str, inputs: Mapping[str, Tensor], made: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        expected = self.reference.expected(call, stage, inputs, made)
        if Place(call.phase, stage) == self.place:
            found = {tensor: _errors(tensor, want, made[tensor]) for tensor, want in expected.items()}
            error = max((each.rel_l2 for each in found.values() if len(each.squared_error)), default=-1.0)
            if error > self.error:
                self.error = error
                self.sample = Sample(
                    call,
                    stage,
                    {name: np.array(value) for name, value in inputs.items()},
                    {name: _where_known(want, made[name]) for name, want in expected.items()},
                    {name: np.array(made[name]) for name in expected},
                )
        return _fed(expected, made)


def tensor_errors(tensor: str, expected: Tensor, got: Tensor) -> RowErrors:
    """Errors of a tensor by its name: row by row where it is rows of the stream, else as a whole."""
    return _errors(tensor, Expected(expected), got)


def _errors(tensor: str, expected: Expected, got: Tensor) -> RowErrors:
    if got.ndim == expected.value.ndim:  # a file may be made for larger sources: what is beyond this one is padding
        got = got[tuple(map(slice, expected.value.shape))]
    count = math.prod(got.shape[:2]) if tensor.startswith(_ROWS) else 1
    want, have = expected.value.reshape(count, -1), got.reshape(count, -1)
    if expected.known is not None:
        want, have = want[expected.known], have[expected.known]
        if not len(want):
            return RowErrors(np.empty(0), np.empty(0))
    return compare_rows(want, have)


def _where_known(expected: Expected, got: Tensor) -> Tensor:
    """What was expected; where that is not known, what came."""
    if expected.known is None:
        return np.array(expected.value)
    known = expected.known.reshape(*got.shape[:2], *[1] * (got.ndim - 2))
    return np.where(known, expected.value, got)


def _fed(expected: Mapping[str, Expected], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's tensors, rounded to the precision of the side that is fed; unknown rows stay that side's."""
    return {
        tensor: np.ascontiguousarray(_where_known(want, made[tensor]).astype(made[tensor].dtype))
        for tensor, want in expected.items()
    }
