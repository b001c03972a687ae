"""The entry points a model exports: ``prefill_{T}`` and ``decode``, with named tensors of fixed shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.authoring.decoder import DecoderOnlyModel


@dataclass(frozen=True)
class Signature:
    """One entry point: ``module(**inputs)`` returns named outputs. ``inputs`` are samples of the right shape."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]


class _EntryPoint(nn.Module):
    """Calls the model with the cache as named inputs, as the exported file will be called."""

    def __init__(self, model: DecoderOnlyModel, *, logits: bool) -> None:
        super().__init__()
        self.model = model
        self.logits = logits

    def forward(self, tokens: Tensor, input_pos: Tensor, **cache: Tensor) -> dict[str, Tensor]:
        return self.model(tokens, input_pos, cache, logits=self.logits)  # type: ignore[no-any-return]


def decoder_signatures(
    model: DecoderOnlyModel, *, prefill_lengths: Sequence[int], cache_length: int, prefill_logits: bool
) -> Iterator[Signature]:
    """``prefill_{T}`` for every length, then ``decode``.

    Inputs: ``tokens`` int32 ``[1, T]``, ``input_pos`` int32 ``[T]``, ``kv_cache_k_{i}`` and ``kv_cache_v_{i}`` float32
    ``[1, S, K, H]``. Outputs: ``logits`` ``[1, T, V]`` and the cache. ``prefill_logits=False`` leaves the logits of
    prefill out, for shipping.
    """
    prefill = _EntryPoint(model, logits=prefill_logits)
    for length in prefill_lengths:
        yield Signature(f"prefill_{length}", prefill, _sample(model, length, cache_length))
    yield Signature("decode", _EntryPoint(model, logits=True), _sample(model, 1, cache_length))


def _sample(model: DecoderOnlyModel, length: int, cache_length: int) -> dict[str, Tensor]:
    return {
        "tokens": torch.zeros((1, length), dtype=torch.int32),
        "input_pos": torch.arange(length, dtype=torch.int32),
        **model.empty_cache(cache_length),
    }
