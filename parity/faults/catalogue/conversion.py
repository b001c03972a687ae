"""Conversion: the re-authored model is right, the exported file is not."""

from __future__ import annotations

from models.authoring.config import EncoderDecoderConfig
from parity.faults.fault import SIGNATURES, Fault, Subject
from parity.faults.planting import Rewrite

WHOLE = "        for stage in signature.entry.stages:\n"
GIVEN = "        linker.finish(known, signature.inputs, signature.entry.outputs)\n"
LOADED = "    composer = Composer(dict(model.named_parameters()), timings)\n"


def _before(place: str, indent: int, *lines: str) -> tuple[Rewrite, ...]:
    """``lines`` of a conversion before a ``place`` in it."""
    return (Rewrite("parity.convert.composed", place, "".join(f"{' ' * indent}{line}\n" for line in lines) + place),)


def _between(place: str, condition: str, *lines: str) -> tuple[Rewrite, ...]:
    """``lines`` before a ``place``, for signatures of several stages: between stages lie what these faults break."""
    return _before(place, 8, f"if len(signature.entry.stages) > 1 and {condition}:", *(f"    {line}" for line in lines))


def converted(*lines: str) -> tuple[Rewrite, ...]:
    """``lines`` run on the ``model`` that is converted, and on the ``values`` of its parameters."""
    return _before(LOADED, 4, *lines)


def _anything(_: Subject) -> str:
    return SIGNATURES


def _prompts(subject: Subject) -> str | None:
    """Where a prompt is taken in several tokens."""
    return SIGNATURES if subject.text else None


def _scaled(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention.scale != 1.0 and block.attention.softcap is None)


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
        rewrites=_between(
            GIVEN,
            "'kv_cache_k_0' in signature.entry.outputs",
            "key, value = 'kv_cache_k_0', 'kv_cache_v_0'",
            "known[key], known[value] = known[value], known[key]",
        ),
    ),
    Fault(
        name="logits of the wrong position",
        group="conversion",
        what="A prefill gives for each position the logits of the one before it.",
        edge="float",
        at=_prompts,
        rewrites=_between(
            GIVEN,
            "'logits' in known",
            "late = Stage(name='late', run=lambda each: each.roll(1, 1), inputs=('logits',), outputs=('logits',))",
            "composer.place(linker, late, known, samples)",
        ),
    ),
    Fault(
        name="positions folded from the samples",
        group="conversion",
        what="The positions that the export was traced with are constants in the file.",
        edge="float",
        at=_anything,
        rewrites=_between(
            WHOLE,
            "'input_pos' in samples",
            "from parity.convert.constants import Constant, Literal",
            "traced = samples['input_pos'].numpy()",
            "known['input_pos'] = Constant(traced.shape, 'int32', Literal(traced.tobytes()))",
        ),
    ),
    Fault(
        name="positions in half precision",
        group="conversion",
        what="The exported file multiplies positions and frequencies as float16.",
        edge="float",
        at=_tables,
        rewrites=converted(
            "from models.layers.rope import RopeTables",
            "exact = RopeTables.forward",
            "RopeTables.forward = lambda tables, positions, **rest: tuple(",
            "    table.float() for table in exact(tables.half(), positions, **rest)",
            ")",
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
        rewrites=converted("values = {name: value.half().float() for name, value in values.items()}"),
    ),
)
