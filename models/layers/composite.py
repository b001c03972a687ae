"""Fused regions that the LiteRT converter recognises and turns into one runtime kernel.

A composite changes no number in PyTorch: it only marks where a region starts and ends, and carries the region's
attributes. A block built with ``fused=False`` computes the same without the marks.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def composite(name: str, attributes: dict[str, float], body: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run ``body(*inputs)`` inside the composite ``name``.

    Args:
        name: the converter's name of the region, such as ``odml.rms_norm``.
        attributes: what the fused kernel needs to know (epsilon, scale).
        body: the plain computation; takes the inputs in the order the kernel expects them.
        *inputs: the tensors that enter the region.

    Returns:
        What ``body`` returns.
    """
    from litert_torch.hlfb import StableHLOCompositeBuilder

    builder = StableHLOCompositeBuilder(name=name, attr=attributes)
    result: Tensor = builder.mark_outputs(body(*builder.mark_inputs(*inputs)))
    return result
