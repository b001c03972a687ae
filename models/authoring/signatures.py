"""The signatures a model exports: its entry points at fixed shapes, with named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.authoring.model import Entry, Model
from models.authoring.session import SessionInputs, Tensors, prefill_name


@dataclass(frozen=True)
class Signature:
    """An entry point as it is exported. ``inputs`` are samples of the right shape, by name."""

    name: str
    entry: Entry
    inputs: dict[str, Tensor]


class EntryPoint(nn.Module):
    """Calls an entry point with named inputs, as the exported file will be called."""

    def __init__(self, model: Model, entry: Entry) -> None:
        super().__init__()
        self.model = model  # so that its parameters are found
        self.entry = entry

    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        return self.entry(tensors)


def signatures(
    model: Model,
    *,
    prefill_lengths: Sequence[int],
    cache_length: int,
    prefill_logits: bool,
    sessions: Sequence[SessionInputs],
) -> Iterator[Signature]:
    """Every encoder that the sessions call, ``prefill_{T}`` for every length, then ``decode``.

    Shapes hold the largest of ``sessions``. ``prefill_logits=False`` leaves the logits of prefill out, for shipping.
    """
    known: dict[str, Tensor] = {**model.empty_cache(cache_length)}
    for name, tensors in _largest(sessions).items():
        entry = model.entry(name, cache_length)
        samples = {key: torch.from_numpy(value) for key, value in tensors.items()}
        yield Signature(name, entry, samples)
        with torch.no_grad():
            known |= entry(samples)
    if rows := max(sum(call.rows for call in session.calls) for session in sessions):
        known["encoded"] = known["encoded"].new_zeros(1, rows, known["encoded"].shape[-1])
    for prefill in dict.fromkeys(session.prefill for session in sessions if session.prefill):
        entry = model.entry(prefill, cache_length, logits=prefill_logits)
        for length in prefill_lengths:
            samples = _samples(entry, length, known, sessions)
            yield Signature(prefill_name(prefill, length), entry, samples)
    entry = model.entry("decode", cache_length)
    samples = _samples(entry, 1, known, sessions)
    yield Signature("decode", entry, samples)


def stage_signatures(whole: Iterable[Signature]) -> Iterator[Signature]:
    """Every stage of the signatures ``whole`` as one of its own, ``signature.stage``, for a file to be looked into."""
    for signature in whole:
        known = dict(signature.inputs)
        for stage in signature.entry.stages:
            inputs = {name: known[name] for name in stage.inputs}
            yield Signature(f"{signature.name}.{stage.name}", Entry([stage], stage.outputs), inputs)
            with torch.no_grad():
                stage(known)


def _largest(sessions: Sequence[SessionInputs]) -> dict[str, Tensors]:
    """For each encoder zeros of the largest shape that any session gives it."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for call in (call for session in sessions for call in session.calls):
        largest = found.setdefault(call.entry, {})
        for name, value in call.tensors.items():
            shapes = (value.shape, largest[name].shape if name in largest else value.shape)
            largest[name] = np.zeros(np.max(shapes, axis=0), value.dtype)
    return dict(found)


def _samples(
    entry: Entry, length: int, known: Mapping[str, Tensor], sessions: Sequence[SessionInputs]
) -> dict[str, Tensor]:
    """What the entry point takes, for ``length`` tokens."""
    given = {
        "tokens": torch.zeros((1, length), dtype=torch.int32),
        "input_pos": torch.arange(length, dtype=torch.int32),
        **known,
    }
    for session in sessions:
        for name, value in session.per_position.items():
            given[name] = torch.zeros((*value.shape[:-1], length), dtype=torch.from_numpy(value[..., :1]).dtype)
        given |= {name: torch.from_numpy(value) for name, value in session.constant.items()}
    return {name: given[name] for name in entry.inputs}
