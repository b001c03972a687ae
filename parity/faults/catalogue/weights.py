"""Weights: in the wrong place, the wrong way round, or not quite the ones that were published."""

from __future__ import annotations

from models.authoring.stage import stage_of
from models.authoring.weight_map import Split, Tie
from parity.faults.fault import Fault, Subject
from parity.faults.planting import Rewrite

WEIGHT_MAP = "models.authoring.weight_map"


def loaded(*lines: str) -> tuple[Rewrite, ...]:
    """``lines`` run on every ``model`` when its last parameter has been filled."""
    end = "    if waiting:\n        raise CheckpointError"
    return (Rewrite(WEIGHT_MAP, end, "".join(f"    {line}\n" for line in lines) + end),)


def _same_heads(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention.num_heads == block.attention.num_kv_heads)


def _shared_heads(subject: Subject) -> str | None:
    return subject.block(lambda block: 1 < block.attention.num_kv_heads < block.attention.num_heads)


def _gated(subject: Subject) -> str | None:
    return subject.block(lambda block: block.mlp.gated)


def _biased(subject: Subject) -> str | None:
    return subject.block(lambda block: block.attention.qkv_bias)


def _first_of_alike(subject: Subject) -> str | None:
    """Layers that differ in size cannot be taken for each other."""
    name, blocks, _ = subject.stacks[0]
    sizes = {(block.attention.num_heads, block.attention.num_kv_heads, block.mlp.hidden) for block in blocks}
    return f"{name}_0" if len(sizes) == 1 else None


def _second_of_alike(subject: Subject) -> str | None:
    first = _first_of_alike(subject)
    return first.replace("_0", "_1") if first else None


def _square(subject: Subject) -> str | None:
    """Where the output projection of the first blocks can be transposed unnoticed by any shape."""
    config = subject.text or subject.config
    widths = {
        "block": getattr(config, "width", None),
        "vision": getattr(subject.vision, "width", 0),
    }
    for name, blocks, _ in subject.stacks:
        attention = blocks[0].attention
        if attention.num_heads * attention.head_dim == widths.get(name, widths["block"]):
            return f"{name}_0"
    return None


def _cut(subject: Subject, pieces: int) -> str | None:
    """The block of the first stored tensor whose last ``pieces`` pieces could be taken for each other."""
    for operation in subject.operations:
        if isinstance(operation, Split) and len(operation.rows) >= pieces and len(set(operation.rows[-pieces:])) == 1:
            return stage_of(operation.parts[0])
    return None


def _gain_offset(subject: Subject) -> str | None:
    return subject.block(lambda block: bool(block.attention_norm.gain_offset))


def _tied(subject: Subject) -> str | None:
    return "head" if any(isinstance(operation, Tie) for operation in subject.operations) else None


def _untied(subject: Subject) -> str | None:
    return None if _tied(subject) else "head"


def _head_bias(subject: Subject) -> str | None:
    return "head" if subject.text and subject.text.head_bias else None


FAULTS = (
    Fault(
        name="q and k swapped",
        group="weights",
        what="The projections of queries and keys are loaded into each other's places.",
        at=_same_heads,
        rewrites=loaded(
            "for module in model.modules():",
            "    if hasattr(module, 'q_proj') and module.q_proj.weight.shape == module.k_proj.weight.shape:",
            "        module.q_proj, module.k_proj = module.k_proj, module.q_proj",
        ),
    ),
    Fault(
        name="gate and up swapped",
        group="weights",
        what="The half that is activated and the half that is not are loaded into each other's places.",
        at=_gated,
        rewrites=loaded(
            "for module in model.modules():",
            "    if hasattr(module, 'gate_proj'):",
            "        module.gate_proj, module.up_proj = module.up_proj, module.gate_proj",
        ),
    ),
    Fault(
        name="square matrix transposed",
        group="weights",
        what="Output projections are stored the other way round, and their shape does not tell.",
        at=_square,
        rewrites=loaded(
            "for module in model.modules():",
            "    if hasattr(module, 'o_proj') and len(set(module.o_proj.weight.shape)) == 1:",
            "        module.o_proj.weight.data = module.o_proj.weight.data.t().contiguous()",
        ),
    ),
    Fault(
        name="fused rows in the wrong order",
        group="weights",
        what="A stored tensor is cut in the right places and its last two pieces are taken for each other.",
        at=lambda subject: _cut(subject, 2),
        rewrites=(
            Rewrite(
                WEIGHT_MAP,
                "        return _cut(sources[0], self.rows)\n",
                "        *head, one, other = _cut(sources[0], self.rows)\n"
                "        return (*head, other, one) if one.shape == other.shape else (*head, one, other)\n",
            ),
        ),
    ),
    Fault(
        name="fused rows interleaved",
        group="weights",
        what="A fused query, key and value tensor is read as rows in turn instead of one block after the other.",
        at=lambda subject: _cut(subject, 3),
        rewrites=(
            Rewrite(
                WEIGHT_MAP,
                "        return _cut(sources[0], self.rows)\n",
                "        if len(self.rows) == 3 and len(set(self.rows)) == 1:\n"
                "            return tuple(sources[0][part::3].contiguous() for part in range(3))\n"
                "        return _cut(sources[0], self.rows)\n",
            ),
        ),
    ),
    Fault(
        name="gain without its one",
        group="weights",
        what="A norm multiplies by the stored gain where the gain is stored less one.",
        at=_gain_offset,
        rewrites=(Rewrite("models.layers.norm", "gain_offset=config.gain_offset", "gain_offset=0.0"),),
    ),
    Fault(
        name="tied head left as initialized",
        group="weights",
        what="The head should be the embedding; nothing is loaded into it.",
        at=_tied,
        rewrites=(
            Rewrite(
                WEIGHT_MAP,
                "assign(model, operation.alias, model.get_parameter(operation.target))",
                "import torch; drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)); "
                "assign(model, operation.alias, torch.nn.Parameter(0.02 * drawn, requires_grad=False))",
            ),
        ),
    ),
    Fault(
        name="head tied that is not",
        group="weights",
        what="The head is the embedding although the file has a table of its own for it.",
        at=_untied,
        rewrites=loaded(
            "tables = [parameter for name, parameter in model.named_parameters() if name.endswith('tokens.weight')]",
            "for name, module in model.named_modules():",
            "    if name.endswith('projection'):",
            "        module.weight = tables[0]",
        ),
    ),
    Fault(
        name="one layer loaded twice",
        group="weights",
        what="The second block has the weights of the first.",
        at=_second_of_alike,
        rewrites=loaded(
            "for name, module in model.named_modules():",
            "    if name.endswith('blocks') and len({block.mlp.up_proj.weight.shape for block in module}) == 1:",
            "        module[1].load_state_dict(module[0].state_dict())",
        ),
    ),
    Fault(
        name="layers off by one",
        group="weights",
        what="Every block has the weights of the one after it, the last those of the first.",
        at=_first_of_alike,
        rewrites=loaded(
            "for name, module in model.named_modules():",
            "    if name.endswith('blocks') and len({block.mlp.up_proj.weight.shape for block in module}) == 1:",
            "        states = [{k: v.clone() for k, v in block.state_dict().items()} for block in module]",
            "        for block, state in zip(module, [*states[1:], states[0]], strict=True):",
            "            block.load_state_dict(state)",
        ),
    ),
    Fault(
        name="weights rounded to bfloat16",
        group="weights",
        what="A float32 checkpoint goes through bfloat16 on its way.",
        at=lambda subject: subject.entrance,
        rewrites=loaded(
            "for parameter in model.parameters():", "    parameter.data = parameter.data.bfloat16().to(parameter.dtype)"
        ),
    ),
    Fault(
        name="biases dropped",
        group="weights",
        what="The biases of queries and values are there and not added.",
        at=_biased,
        rewrites=loaded(
            "for name, parameter in model.named_parameters():",
            "    if name.endswith(('q_proj.bias', 'v_proj.bias')):",
            "        parameter.data.zero_()",
        ),
    ),
    Fault(
        name="head bias not built",
        group="weights",
        what="The model has no place for the head's bias, which the checkpoint has: strict loading refuses it.",
        at=_head_bias,
        outcome="ERROR",
        says="no parameter",
        rewrites=(Rewrite("models.authoring.decoder", "bias=config.head_bias", "bias=False"),),
    ),
    Fault(
        name="heads shared in turn",
        group="weights",
        what="Query heads share key and value heads in turn instead of block by block.",
        at=_shared_heads,
        rewrites=tuple(
            Rewrite(
                "models.layers.attention",
                f"{name} = {name}.transpose(1, 2).repeat_interleave(group, dim=1)",
                f"{name} = {name}.transpose(1, 2).repeat(1, group, 1, 1)",
            )
            for name in ("key", "value")
        ),
    ),
    Fault(
        name="norms swapped",
        group="weights",
        what="The gains before attention and before the feed-forward are loaded into each other's places.",
        at=lambda subject: subject.sequential,
        rewrites=loaded(
            "for module in model.modules():",
            "    if getattr(getattr(module, 'mlp_norm', None), 'weight', None) is not None:",
            "        module.attention_norm, module.mlp_norm = module.mlp_norm, module.attention_norm",
        ),
    ),
    Fault(
        name="embedding off by one",
        group="weights",
        what="Every token gets the row of the one before it.",
        at=lambda subject: subject.embedding,
        rewrites=loaded(
            "for name, parameter in model.named_parameters():",
            "    if name.endswith('tokens.weight'):",
            "        parameter.data = parameter.data.roll(1, 0)",
        ),
    ),
)
