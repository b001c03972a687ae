"""What hardly shows: a constant that is off by little, one head, one slot, one step. Text still reads like text."""

from __future__ import annotations

from collections.abc import Callable

from parity.faults.catalogue.arithmetic import ATTENTION, MLP, NORM
from parity.faults.catalogue.conversion import converted
from parity.faults.catalogue.masks import CACHE, WRITTEN
from parity.faults.catalogue.positions import ROPE
from parity.faults.catalogue.quantization import spoilt
from parity.faults.catalogue.weights import loaded
from parity.faults.fault import Fault, Subject
from parity.faults.planting import Rewrite

#: The cache slot that is not written to. There must be prompts of more positions.
SLOT = 500


def _second(subject: Subject) -> str:
    """The second block that there is."""
    return f"{subject.stacks[0][0]}_1"


def _normed_heads(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention.qk_norm is not None)


def _with_heads(subject: Subject) -> str | None:
    """The second block, if it has two heads to exchange."""
    return _second(subject) if subject.stacks[0][1][1].attention.num_heads > 1 else None


def _far(subject: Subject) -> str | None:
    """Where a prompt of text goes that far."""
    return subject.causal if subject.text and subject.config.max_positions > SLOT + 1 else None


def _activated(name: str) -> Callable[[Subject], str | None]:
    def at(subject: Subject) -> str | None:
        if not any(mlp.activation == name for mlp in subject.mlps):
            return None
        return subject.block(lambda block: block.mlp.activation == name) or "merger"

    return at


def _theta(times: str) -> tuple[Rewrite, ...]:
    return (Rewrite(ROPE, "config.theta**-exponents", f"({times} * config.theta) ** -exponents"),)


FAULTS = (
    Fault(
        name="epsilon twice as large",
        group="arithmetic",
        what="Norms have 2e-6 where the configuration says 1e-6, or the like.",
        at=lambda subject: subject.block(),
        rewrites=(
            Rewrite(NORM, "return RMSNorm(width, config.eps,", "return RMSNorm(width, 2 * config.eps,"),
            Rewrite(NORM, "return LayerNorm(width, config.eps,", "return LayerNorm(width, 2 * config.eps,"),
        ),
    ),
    Fault(
        name="epsilon of heads twice as large",
        group="arithmetic",
        what="The norms of queries and keys have twice the epsilon that they should have.",
        at=_normed_heads,
        rewrites=tuple(
            Rewrite(
                ATTENTION,
                f"        self.{name} = build_norm(config.qk_norm, config.head_dim, fused=fused)\n",
                f"        self.{name} = build_norm(config.qk_norm, config.head_dim, fused=fused)\n"
                f"        if config.qk_norm:\n            self.{name}.eps *= 2\n",
            )
            for name in ("q_norm", "k_norm")
        ),
    ),
    Fault(
        name="base of positions a thousandth off",
        group="positions",
        what="Heads turn with 1.001 times the base that the configuration says.",
        at=lambda subject: subject.rotated,
        rewrites=_theta("1.001"),
    ),
    Fault(
        name="base of positions a millionth off",
        group="positions",
        what="Heads turn with 1 + 1e-6 times the base that the configuration says.",
        at=lambda subject: subject.rotated,
        rewrites=_theta("(1 + 1e-6)"),
    ),
    Fault(
        name="one gain in bfloat16",
        group="weights",
        what="The gain before attention of the second block goes through bfloat16, all other weights are as they were.",
        at=_second,
        tiny_only="the gains of the sample were published in bfloat16, which loses nothing of them",
        rewrites=loaded(
            "for name, module in model.named_modules():",
            "    if name.endswith('blocks'):",
            "        gain = module[1].attention_norm.weight",
            "        gain.data = gain.data.bfloat16().to(gain.dtype)",
        ),
    ),
    Fault(
        name="scores a ten-thousandth off",
        group="arithmetic",
        what="Scores are scaled by 1.0001 times what they should be.",
        at=lambda subject: subject.block(),
        rewrites=(Rewrite(ATTENTION, "scale=self.config.scale", "scale=self.config.scale * 1.0001"),),
    ),
    Fault(
        name="two heads exchanged",
        group="weights",
        what="In the second block, the first two query heads are loaded into each other's places.",
        at=_with_heads,
        rewrites=loaded(
            "for name, module in model.named_modules():",
            "    attention = getattr(module[1], 'attention', None) if name.endswith('blocks') else None",
            "    if attention is not None and attention.config.num_heads > 1:",
            "        for each in (attention.q_proj.weight, attention.q_proj.bias):",
            "            if each is not None:",
            "                heads = each.data.view(attention.config.num_heads, attention.config.head_dim, -1)",
            "                each.data = heads[[1, 0, *range(2, len(heads))]].reshape(each.shape)",
        ),
    ),
    Fault(
        name="tanh GELU for the exact one",
        group="arithmetic",
        what="The feed-forward has the approximation where the error function belongs.",
        at=_activated("gelu"),
        rewrites=(
            Rewrite(
                MLP,
                '    "gelu": functional.gelu,  # exact, with erf\n',
                '    "gelu": partial(functional.gelu, approximate="tanh"),\n',
            ),
        ),
    ),
    Fault(
        name="exact GELU for the tanh one",
        group="arithmetic",
        what="The feed-forward has the error function where its approximation belongs.",
        at=_activated("gelu_tanh"),
        rewrites=(
            Rewrite(
                MLP,
                '    "gelu_tanh": partial(functional.gelu, approximate="tanh"),',
                '    "gelu_tanh": functional.gelu,',
            ),
        ),
    ),
    Fault(
        name="one stale cache slot",
        group="masks and cache",
        what=f"Keys and values of position {SLOT} are not kept, those of all others are.",
        at=_far,
        arguments=("--prompts", "long"),
        rewrites=(
            Rewrite(
                CACHE,
                WRITTEN,
                f"{WRITTEN}    if start <= {SLOT} < start + count:\n        updated[:, {SLOT}] = cache[:, {SLOT}]\n",
            ),
        ),
    ),
    Fault(
        name="one weight a millionth off",
        group="conversion",
        what="The exported file has one matrix multiplied by 1 + 1e-6.",
        edge="float",
        at=_second,
        rewrites=converted(
            "values = {",
            "    name: value * (1 + 1e-6) if name.endswith('blocks.1.mlp.down_proj.weight') else value",
            "    for name, value in values.items()",
            "}",
        ),
    ),
    Fault(
        name="one gain dropped",
        group="conversion",
        what="The exported file has ones for the gain before attention of the second block.",
        edge="float",
        at=_second,
        rewrites=converted(
            "from models.layers.norm import LayerNorm, RMSNorm",
            "norms = {f'{name}.weight': norm for name, norm in model.named_modules()",
            "         if isinstance(norm, (LayerNorm, RMSNorm)) and name.endswith('blocks.1.attention_norm')}",
            "values = {",
            "    name: value * 0 + (1 - getattr(norms[name], 'gain_offset', 0.0)) if name in norms else value",
            "    for name, value in values.items()",
            "}",
        ),
    ),
    Fault(
        name="one step a hundredth off",
        group="quantization",
        what="The step of one channel is 1 % larger than the codes were made for.",
        edge="dynamic_int8",
        at=_second,
        rewrites=spoilt("details.scale = [1.01 * details.scale[0], *details.scale[1:]]"),
    ),
    Fault(
        name="zero point off by one",
        group="quantization",
        what="Integers of activations are turned back with the zero point of one above.",
        edge="dynamic_int8",
        at=lambda subject: subject.block(),
        rewrites=(
            Rewrite(
                "parity.runners.rounded",
                "(steps.round() + zero).clamp(-128, 127).sub(zero)",
                "(steps.round() + zero).clamp(-128, 127).sub(zero + 1)",
            ),
        ),
    ),
    Fault(
        name="zero point off by one at both ends",
        group="quantization",
        what="Activations are rounded with the zero point of one above, so that the largest of them are cut off.",
        edge="dynamic_int8",
        at=lambda subject: subject.block(),
        rewrites=(
            Rewrite(
                "parity.runners.rounded",
                "zero = (-128 - least / step).round()",
                "zero = (-128 - least / step).round() + 1",
            ),
        ),
    ),
)
