"""Draws of float32 noise: what adding in another order, as a runtime does, makes of the re-authored model.

Every draw evaluates the model in float32 and adds a random error to what each linear layer and each norm makes. Its
size is that of adding ``K`` terms one after the other, as the runtime's kernels do. Each addition rounds the partial
sum, by an error that is uniform in plus or minus one unit roundoff ``u`` of it, so the variance is ``u^2 / 3`` times
the sum of the squared partial sums. For terms in random order whose sum is ``y`` and whose squares add up to ``q``,
that sum is ``K/3 y^2 + K/6 (q - y^2/K)`` (partial sums of a random permutation: a line to ``y`` and a bridge around
it). The squares are taken to be spread over the terms: ``q = |w|^2 |x|^2 / K``; the exact ``(w^2)(x^2)`` would cost a
second product, and on trained weights it gives the same ratios.

What PyTorch rounds by itself in float32 (rotary angles, softmax, activations) is in every draw anyway. Other noise was
measured as well: plus or minus one ``u`` on every output, without the sums, is half as large as the original's own
error and grows too slowly with the width; up-down rounding of every operator costs ten times as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity import isolated
from parity.errors import RungError
from parity.files import whole_file
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import Answering
from parity.trace import PHASES, Trace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.authoring.model import Model
    from parity.compare.floor import NoiseFloor


#: Float32's unit roundoff.
_ROUNDOFF = 2.0**-24


class Noise:
    """Adds noise to what the layers of a model make. The same prompt is given the same noise in every process."""

    def __init__(self) -> None:
        #: The squared length of every row of a layer's weights.
        self._lengths: dict[int, Tensor] = {}

    def begin(self, prompt: TokenizedPrompt) -> None:
        """Start over, with noise that follows from the prompt's id."""
        import hashlib

        import torch

        torch.manual_seed(int.from_bytes(hashlib.sha256(prompt.id.encode()).digest()[:8], "little"))

    def watch(self, model: Model) -> None:
        """From now on, whatever the model's layers make is noisy."""
        from torch import nn

        from models.layers.audio import WholeNorm
        from models.layers.norm import LayerNorm, RMSNorm

        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                module.register_forward_hook(self._after_sum)
            elif isinstance(module, (RMSNorm, LayerNorm, WholeNorm)):
                module.register_forward_hook(self._after_norm)

    def _after_sum(self, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        """``made`` ``[..., out]`` of a product, or ``[B, out, frames]`` of a convolution, with its error."""
        from torch import nn

        weight: Any = layer.weight
        terms = weight[0].numel()
        if id(layer) not in self._lengths:
            self._lengths[id(layer)] = weight.flatten(1).square().sum(1)
        lengths = self._lengths[id(layer)]
        if isinstance(layer, nn.Conv1d):
            # A convolution's windows are short, and its inputs about alike: their mean square stands for each.
            squares = given[0].square().mean(dim=(-2, -1), keepdim=True) * terms
            lengths = lengths[:, None]
        else:
            squares = given[0].square().sum(-1, keepdim=True)
        variance = (terms / 3 - 1 / 6) * made.square() + lengths * (squares / 6)
        return made.addcmul(variance.sqrt_(), self._uniform(made))

    def _after_norm(self, _: nn.Module, __: Any, made: Tensor) -> Tensor:
        """One error for each row ``[..., D]``, of the sum of its squares, and one for each value."""
        size = math.sqrt(made.shape[-1] / 3) / 2
        return made.addcmul(made, self._uniform(made[..., :1]) * size).addcmul(made, self._uniform(made))

    def _uniform(self, like: Tensor) -> Tensor:
        """Errors of at most one unit roundoff."""
        import torch

        drawn = torch.rand_like(like)
        return drawn.mul_(2 * _ROUNDOFF).sub_(_ROUNDOFF)


@dataclass(frozen=True)
class Draws:
    """Which draws: ``count`` of them, the first of which is number ``first``."""

    first: int
    count: int

    def of(self, inputs: Inputs) -> Inputs:
        """Every prompt once for each draw. Nothing is generated from them."""
        copies = [
            replace(prompt, id=self.name(prompt.id, number), generates=False)
            for number in range(self.count)
            for prompt in inputs.prompts
        ]
        return replace(inputs, prompts=tuple(copies))

    def name(self, prompt: str, number: int) -> str:
        """What the copy of a prompt is called."""
        return f"{prompt} draw {self.first + number}"


def measured(
    answering: Answering,
    runner: Any,
    inputs: Inputs,
    draws: Draws,
    exact: Path,
    destination: Path,
    progress: isolated.Progress,
) -> None:
    """A job: how far draws of ``runner``, which is noisy, are from the trace ``exact``; written to ``destination``.

    Raises:
        RungError: a draw is no number somewhere.
    """
    from safetensors.numpy import save_file

    trace, _ = answering(runner, draws.of(inputs), 0, None, progress)
    centre = Trace.load(exact)
    tensors = {}
    for prompt in inputs.prompts:
        copies = [trace.prompts[draws.name(prompt.id, number)] for number in range(draws.count)]
        expected = centre.prompts[prompt.id]
        most = np.zeros(draws.count)
        for phase in (*PHASES, "encoded"):
            reference = getattr(expected, phase)
            if reference is None:
                continue
            found = [getattr(copy, phase).astype(np.float64) - reference for copy in copies]
            if not all(np.isfinite(each).all() for each in found):
                raise RungError(f"{runner.name}, prompt {prompt.id}, {phase}: NaN or infinity; float32 overflows there")
            tensors[f"{prompt.id}/{phase}"] = np.asarray([np.square(each).sum(axis=1) for each in found])
            if phase in PHASES:
                most = np.maximum(most, [np.abs(each).max(initial=0.0) for each in found])
        tensors[f"{prompt.id}/most"] = most
    with whole_file(destination) as temporary:
        save_file(tensors, temporary)


def read_floor(path: Path, inputs: Inputs, least: Mapping[str, float]) -> NoiseFloor:
    """What ``measured`` wrote.

    Raises:
        OSError, SafetensorError, KeyError: it is not there, or not that.
    """
    from safetensors.numpy import load_file

    from parity.compare.floor import NoiseFloor, PromptNoise

    tensors = load_file(path)
    noise = {}
    for prompt in inputs.prompts:
        squared = {phase: tensors[f"{prompt.id}/{phase}"] for phase in PHASES}
        if f"{prompt.id}/encoded" in tensors:
            squared["encoder"] = tensors[f"{prompt.id}/encoded"]
        noise[prompt.id] = PromptNoise(squared, tensors[f"{prompt.id}/most"])
    return NoiseFloor(noise, least)
