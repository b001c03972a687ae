"""Quantization: the float file is right, what is stored of it is not."""

from __future__ import annotations

from collections.abc import Callable

from parity.faults.fault import Fault, Subject
from parity.faults.planting import Rewrite

WRITTEN = "        temporary.write_bytes(quantized)\n"
#: One matrix of the second block that there is, in every signature that reads it: its codes once, its scales each time.
OPENED = """\
        import numpy as np
        from ai_edge_quantizer.utils import tfl_flatbuffer_utils as files
        from parity.convert.stored import weights_of
        spoilt, seen = files.read_model(bytearray(quantized)), set()
        target = next(name for name in names if name.endswith("blocks.1.mlp.down_proj"))
        for name, weight in zip(names, weights_of(spoilt), strict=True):
            if name != target:
                continue
            details, buffer = weight.tensor.quantization, spoilt.buffers[weight.tensor.buffer]
            first = weight.tensor.buffer not in seen
            seen.add(weight.tensor.buffer)
"""
CLOSED = "        files.write_model(spoilt, str(temporary))\n        quantized = temporary.read_bytes()\n"


def spoilt(*lines: str) -> tuple[Rewrite, ...]:
    """``lines`` change one weight of the file: its ``buffer`` the ``first`` time, its ``details`` every time."""
    body = "".join(f"            {line}\n" for line in lines)
    return (Rewrite("parity.convert.quantize", WRITTEN, OPENED + body + CLOSED + WRITTEN),)


def _second_block(test: Callable[[int], bool] = lambda _: True) -> Callable[[Subject], str | None]:
    """The second block that there is, if what its matrix reads has a width that passes the test."""

    def at(subject: Subject) -> str | None:
        name, blocks, _ = subject.stacks[0]
        return f"{name}_1" if test(blocks[1].mlp.hidden) else None

    return at


FAULTS = (
    Fault(
        name="zero scale",
        group="quantization",
        what="A channel's step is zero.",
        edge="dynamic_int8",
        at=_second_block(),
        outcome="ERROR",
        says="scales that are zero",
        rewrites=spoilt("details.scale[0] = 0.0"),
    ),
    Fault(
        name="nibbles in the other order",
        group="quantization",
        what="Of two codes in a byte the upper is taken for the first.",
        edge="dynamic_int4",
        at=_second_block(),
        rewrites=spoilt(
            "if first:",
            "    stored = np.frombuffer(buffer.data, np.uint8)",
            "    buffer.data = (stored << 4) | (stored >> 4)",
        ),
    ),
    Fault(
        name="blocks along the wrong axis",
        group="quantization",
        what="The steps of blocks are stored column by column.",
        edge="dynamic_int4_block32",
        at=_second_block(lambda width: width % 32 == 0 and width > 32),
        rewrites=spoilt(
            "if first:",
            "    scales = spoilt.buffers[weight.subgraph.tensors[details.details.scales].buffer]",
            "    stored = np.frombuffer(scales.data, np.float16).reshape(weight.shape[0], -1)",
            "    scales.data = np.frombuffer(stored.T.tobytes(), np.uint8)",
        ),
    ),
    Fault(
        name="one step for a whole matrix",
        group="quantization",
        what="Channels share the step of the largest of them, under the name of their own.",
        edge="dynamic_int8",
        at=_second_block(),
        rewrites=spoilt(
            "largest = max(details.scale)",
            "if first:",
            "    codes = np.frombuffer(buffer.data, np.int8).reshape(weight.shape)",
            "    finer = np.asarray(details.scale)[:, None] / largest",
            "    buffer.data = np.frombuffer(np.round(codes * finer).astype(np.int8).tobytes(), np.uint8)",
            "details.scale = [largest] * len(details.scale)",
        ),
    ),
    Fault(
        name="outlier channel clipped",
        group="quantization",
        what="The largest weights of a channel do not fit its step and are cut off.",
        edge="dynamic_int8",
        at=_second_block(),
        rewrites=spoilt(
            "channel = int(np.argmax(details.scale))",
            "details.scale = [scale / 2 if i == channel else scale for i, scale in enumerate(details.scale)]",
            "if first:",
            "    codes = np.frombuffer(buffer.data, np.int8).reshape(weight.shape).copy()",
            "    codes[channel] = np.clip(2 * codes[channel].astype(int), -127, 127)",
            "    buffer.data = np.frombuffer(codes.tobytes(), np.uint8)",
        ),
    ),
    Fault(
        name="steps of the next channel",
        group="quantization",
        what="Every channel has the step of the one after it.",
        edge="dynamic_int8",
        at=_second_block(),
        rewrites=spoilt("details.scale = np.roll(details.scale, -1).tolist()"),
    ),
)
