"""Positions: how heads are rotated, and by what."""

from __future__ import annotations

from models.authoring.config import EncoderDecoderConfig, Llama3Scaling, LongRopeScaling, SiglipConfig
from parity.faults.fault import Fault, Subject
from parity.faults.planting import Rewrite

ROPE = "models.layers.rope"
ATTENTION = "models.layers.attention"
SESSION = "models.authoring.session"
BIAS = "models.layers.relative_bias"


def _rotated(subject: Subject) -> str | None:
    return subject.rotated


def _partial(subject: Subject) -> str | None:
    found = (
        f"{name}_0" for name, blocks, rope in subject.stacks if rope and rope.rotary_dim < blocks[0].attention.head_dim
    )
    return next(found, None)


def _llama3(subject: Subject) -> str | None:
    return subject.causal if subject.text and isinstance(subject.text.rope.scaling, Llama3Scaling) else None


def _longrope(subject: Subject) -> str | None:
    return subject.causal if subject.text and isinstance(subject.text.rope.scaling, LongRopeScaling) else None


def _attention_factor(subject: Subject) -> str | None:
    scaling = subject.text.rope.scaling if subject.text else None
    return subject.causal if isinstance(scaling, LongRopeScaling) and scaling.attention_factor != 1.0 else None


def _axes(subject: Subject) -> str | None:
    return subject.causal if subject.text and subject.text.rope.sections else None


def _biased(subject: Subject) -> str | None:
    relative = isinstance(subject.config, EncoderDecoderConfig) and subject.config.encoder.relative_bias
    return "encoder_0" if relative else None


def _learned(subject: Subject) -> str | None:
    return "stem" if isinstance(subject.vision, SiglipConfig) else None


FAULTS = (
    Fault(
        name="rotary base of another model",
        group="positions",
        what="Heads turn with base 10,000 where the configuration says another, or the other way round.",
        at=_rotated,
        rewrites=(
            Rewrite(
                ROPE,
                "config.theta**-exponents",
                "(500000.0 if config.theta == 10000.0 else 10000.0) ** -exponents",
            ),
        ),
    ),
    Fault(
        name="frequencies of the whole head",
        group="positions",
        what="The exponents run over the head although only a part of it is rotated.",
        at=_partial,
        rewrites=(
            Rewrite(
                ROPE,
                'dtype=torch.float64, device="cpu") / config.rotary_dim',
                'dtype=torch.float64, device="cpu") / (config.rotary_dim * 2.5)',
            ),
        ),
    ),
    Fault(
        name="scaling dropped",
        group="positions",
        what="Llama 3.1's scaling of frequencies is not applied.",
        at=_llama3,
        rewrites=(Rewrite(ROPE, "return _llama3(frequencies, config.scaling)", "return frequencies"),),
    ),
    Fault(
        name="scaling band the wrong way round",
        group="positions",
        what="Long wavelengths keep their frequency and short ones are divided.",
        at=_llama3,
        rewrites=(
            Rewrite(
                ROPE,
                "return keep * frequencies + (1 - keep) * frequencies / scaling.factor",
                "return (1 - keep) * frequencies + keep * frequencies / scaling.factor",
            ),
        ),
    ),
    Fault(
        name="channels paired the other way",
        group="positions",
        what="Neighbours are rotated together where halves should be, or the other way round.",
        at=_rotated,
        rewrites=(
            Rewrite(ROPE, "    if interleaved:\n        pairs", "    if not interleaved:\n        pairs"),
            Rewrite(ROPE, "    if interleaved:\n        rotated", "    if not interleaved:\n        rotated"),
        ),
    ),
    Fault(
        name="rotation backwards",
        group="positions",
        what="One of the two sines has the wrong sign.",
        at=_rotated,
        rewrites=(Rewrite(ROPE, "first * cos - second * sin", "first * cos + second * sin"),),
    ),
    Fault(
        name="position off by one in decode",
        group="positions",
        what="A token that is decoded is rotated by the position after its own.",
        at=lambda subject: subject.prompted,
        rewrites=(
            Rewrite(
                ROPE,
                "positions = positions.to(frequencies.dtype)",
                "positions = positions.to(frequencies.dtype) + (positions.shape[-1] == 1)",
            ),
        ),
    ),
    Fault(
        name="short factors beyond the boundary",
        group="positions",
        what="LongRoPE's factors for short sessions are used in long ones.",
        at=_longrope,
        rewrites=(Rewrite(ROPE, "self.boundary is not None and cache_length > self.boundary", "False"),),
    ),
    Fault(
        name="attention factor missing",
        group="positions",
        what="LongRoPE's factor on cosines and sines is left out.",
        at=_attention_factor,
        rewrites=(
            Rewrite(ROPE, "self.attention_factor = config.scaling.attention_factor", "self.attention_factor = 1.0"),
        ),
    ),
    Fault(
        name="axes of positions swapped",
        group="positions",
        what="The sections of a head turn with the axes the other way round.",
        at=_axes,
        rewrites=(Rewrite(ROPE, "zip(positions, torch.split(", "zip(positions.flip(0), torch.split("),),
    ),
    Fault(
        name="plain positions under pictures",
        group="positions",
        what="The rows of a picture are numbered on like words.",
        at=_axes,
        rewrites=(
            Rewrite(
                SESSION,
                "axial_positions(tokens, config.image_token, frames, until)",
                "axial_positions(tokens, config.image_token, [], until)",
            ),
        ),
    ),
    Fault(
        name="rows and columns of pictures swapped",
        group="positions",
        what="The positions of a picture's rows go down where they should go across.",
        at=_axes,
        rewrites=(
            Rewrite(
                SESSION,
                "np.indices((1, down, across)).reshape(3, -1)",
                "np.indices((1, down, across)).reshape(3, -1)[[0, 2, 1]]",
            ),
        ),
    ),
    Fault(
        name="text too far on after a picture",
        group="positions",
        what="Text goes on by as many positions as the picture has rows, not by its longer side.",
        at=_axes,
        rewrites=(Rewrite(SESSION, "position += max(down, across)", "position += down * across"),),
    ),
    Fault(
        name="untouched channels scaled",
        group="positions",
        what="The channels beyond the rotated ones are multiplied by the attention factor as well.",
        at=lambda subject: _partial(subject) if _attention_factor(subject) else None,
        rewrites=(Rewrite(ROPE, "torch.cat([*rotated, tail]", "torch.cat([*rotated, tail * 1.19]"),),
    ),
    Fault(
        name="buckets of the other direction",
        group="positions",
        what="Keys right of the query count like those left of it.",
        at=_biased,
        rewrites=(
            Rewrite(
                BIAS,
                "if config.bidirectional else torch.zeros_like(relative)",
                "if False else torch.zeros_like(relative)",
            ),
        ),
    ),
    Fault(
        name="decoder with the encoder's buckets",
        group="positions",
        what="The decoder gathers distances as if there were keys on both sides.",
        at=lambda subject: "decoder_0" if _biased(subject) else None,
        rewrites=(Rewrite("models.t5", "bidirectional=bidirectional", "bidirectional=True"),),
    ),
    Fault(
        name="learned positions off by one",
        group="positions",
        what="Every patch of a picture gets the position of the one before it.",
        at=_learned,
        rewrites=(
            Rewrite(
                "models.authoring.siglip",
                "self.patches(pixels) + self.positions",
                "self.patches(pixels) + self.positions.roll(1, 0)",
            ),
        ),
    ),
)
