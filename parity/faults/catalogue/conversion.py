"""Conversion: the re-authored model is right, the exported file is not."""

from __future__ import annotations

from models.authoring.config import EncoderDecoderConfig
from parity.faults.fault import SIGNATURES, Fault, Subject
from parity.faults.planting import Rewrite

CALLED = "        return self.entry(tensors)\n"
LOADED = "    converter = litert_torch.Converter()\n"


def _exported(*lines: str) -> tuple[Rewrite, ...]:
    """``lines`` between what an exported entry point ``made`` and what it returns."""
    body = "".join(f"        {line}\n" for line in ("made = self.entry(tensors)", *lines, "return made"))
    return (Rewrite("models.authoring.signatures", CALLED, body),)


def _converted(*lines: str) -> tuple[Rewrite, ...]:
    """``lines`` run on the ``model`` that is converted."""
    return (Rewrite("parity.convert.plain", LOADED, "".join(f"    {line}\n" for line in lines) + LOADED),)


def _anything(_: Subject) -> str:
    return SIGNATURES


def _prompts(subject: Subject) -> str | None:
    """Where a prompt is taken in several tokens."""
    return SIGNATURES if subject.text else None


def _scaled(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention.scale != 1.0)


def _tables(subject: Subject) -> str | None:
    """The stage that turns positions into cosines and sines as the model runs."""
    if isinstance(subject.config, EncoderDecoderConfig):
        return "positions" if subject.rotated else None
    return "embed"


FAULTS = (
    Fault(
        name="signature outputs swapped",
        group="conversion",
        what="The first layer's keys come out under the name of its values, and the other way round.",
        edge="float",
        at=_anything,
        rewrites=_exported(
            "key, value = 'kv_cache_k_0', 'kv_cache_v_0'",
            "if key in made:",
            "    made[key], made[value] = made[value], made[key]",
        ),
    ),
    Fault(
        name="logits of the wrong position",
        group="conversion",
        what="A prefill gives for each position the logits of the one before it.",
        edge="float",
        at=_prompts,
        rewrites=_exported("if 'logits' in made:", "    made['logits'] = made['logits'].roll(1, 1)"),
    ),
    Fault(
        name="positions folded from the samples",
        group="conversion",
        what="The positions that the export was traced with are constants in the file.",
        edge="float",
        at=_anything,
        rewrites=(
            Rewrite(
                "models.authoring.signatures",
                CALLED,
                "        if 'input_pos' in tensors:\n"
                "            tensors['input_pos'] = torch.arange(len(tensors['input_pos']), dtype=torch.int32)\n"
                + CALLED,
            ),
        ),
    ),
    Fault(
        name="positions in half precision",
        group="conversion",
        what="The exported file multiplies positions and frequencies as float16.",
        edge="float",
        at=_tables,
        rewrites=_converted(
            "for module in model.modules():",
            "    for name in ('frequencies', 'long_frequencies'):",
            "        if hasattr(module, name):",
            "            setattr(module, name, getattr(module, name).half())",
        ),
    ),
    Fault(
        name="fused attention without its scale",
        group="conversion",
        what="The kernel is told another scale than the one that the model has.",
        edge="float",
        at=_scaled,
        rewrites=(Rewrite("models.layers.attention", 'attributes = {"scale": scale}', 'attributes = {"scale": 1.0}'),),
    ),
    Fault(
        name="fused attention without its soft-cap",
        group="conversion",
        what="The kernel is not told to bound scores.",
        edge="float",
        at=lambda subject: subject.capped,
        rewrites=(Rewrite("models.layers.attention", '{"scale": scale, "logit_cap": softcap}', '{"scale": scale}'),),
    ),
    Fault(
        name="cache written at its start",
        group="conversion",
        what="The exported file writes keys and values at slot zero, whatever the position.",
        edge="float",
        at=lambda subject: subject.causal,
        rewrites=(Rewrite("parity.convert.lowerings", "[zero, start, zero, zero]", "[zero, zero, zero, zero]"),),
    ),
    Fault(
        name="weights rounded on the way",
        group="conversion",
        what="The exported file has the weights rounded to float16.",
        edge="float",
        at=lambda subject: subject.entrance,
        rewrites=_converted(
            "for parameter in model.parameters():", "    parameter.data = parameter.data.half().float()"
        ),
    ),
)
