"""Weight maps: every operation inverts, every preset's table is a bijection, and nothing is applied loosely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import registry
from models.authoring.config import DecoderConfig
from models.authoring.decoder import DecoderOnlyModel
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import (
    AddConstant,
    Drop,
    Fuse,
    Operation,
    Rename,
    Split,
    Tie,
    Transpose,
    load_weights,
    original_layout,
    per_layer,
)
from models.errors import CheckpointError


def config_of(model: registry.Model) -> DecoderConfig:
    return model.family.config_from(HFConfig(model.preset.values(tiny=True), model.name))


LAWS = settings(deadline=None, max_examples=40)
EVERY_PRESET = pytest.mark.parametrize("model", list(registry.models()), ids=lambda model: model.name)
EVERY_DECODER = pytest.mark.parametrize(
    "model", [model for model in registry.models() if not model.encodes], ids=lambda model: model.name
)
UNTIED = registry.get("tinyllama-1.1b")
EVERY_TIED = pytest.mark.parametrize(
    "model",
    [model for model in registry.models() if not model.encodes and config_of(model).tied_head],
    ids=lambda model: model.name,
)
#: Named in the messages below; the nearest other name differs by the layer.
TENSOR = "model.layers.1.self_attn.k_proj.weight"

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)
Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Lists = Callable[[Mapping[str, Any]], dict[str, list[Any]]]
Logits = Callable[[Mapping[str, Any], Mapping[str, Tensor], Tensor], Tensor]
#: As counted in the published files (Gemma, Phi) or from the published layout.
PUBLISHED_TENSORS = {
    "gemma-2b": 164,
    "gemma-7b": 254,
    "gemma-2-2b": 288,
    "phi-2": 453,
    "phi-3.5-mini": 195,
    "phi-4-mini": 194,
    "openelm-270m": 8 * 16 + 2,
    "openelm-450m": 8 * 20 + 2,
    "openelm-1.1b": 8 * 28 + 2,
    "openelm-3b": 8 * 36 + 2,
    "paligemma-3b-224": 603,
    "paligemma-2-3b-224": 727,
    "t5-small": 131,
    "t5-base": 257,
    "moonshine-tiny": 160,
    "moonshine-base": 210,
    "qwen2.5-vl-3b": 824,
}


def empty(model: registry.Model) -> DecoderOnlyModel:
    return model.family.build(config_of(model), device="meta")


def table_of(model: registry.Model) -> list[Operation]:
    return list(model.family.weight_map(config_of(model)))


def checkpoint_for(model: registry.Model, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random tensors under the published names."""
    generator = torch.Generator().manual_seed(seed)
    layout = original_layout(empty(model), table_of(model))
    return {name: torch.randn(meta.shape, generator=generator).to(dtype) for name, meta in layout.items()}


def load(model: registry.Model, tensors: Mapping[str, Tensor]) -> DecoderOnlyModel:
    target = empty(model)
    load_weights(target, table_of(model), tensors)
    return target


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def holder(**shapes: tuple[int, ...]) -> nn.Module:
    """A module with these parameters, on the meta device."""
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta")))
    return module


def equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def one_line(caught: pytest.ExceptionInfo[CheckpointError]) -> str:
    """The message, which must be a single line."""
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def inverted(module: nn.Module, operation: Operation, source: Tensors) -> Tensors:
    """``source`` loaded through one operation and written back."""
    load_weights(module, [operation], source)
    return original_layout(module, [operation])


# -- inverses


@EVERY_PRESET
@settings(deadline=None, max_examples=4)
@given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_map_then_inverse_is_the_identity(model: registry.Model, seed: int, dtype: torch.dtype) -> None:
    """What was in the file comes back under its name, bit for bit, from every storage dtype."""
    source = checkpoint_for(model, seed, dtype)
    loaded = load(model, source)
    assert equal(original_layout(loaded, table_of(model)), {name: value.float() for name, value in source.items()})


@EVERY_PRESET
def test_inverse_then_map_is_the_identity(model: registry.Model) -> None:
    """Every parameter goes into the file's layout and comes back; none is left out."""
    first = load(model, checkpoint_for(model, seed=1))
    second = load(model, original_layout(first, table_of(model)))
    assert equal(dict(first.named_parameters()), dict(second.named_parameters()))


@EVERY_PRESET
def test_layout_is_the_original_models(model: registry.Model, openelm_lists: Lists) -> None:
    """Names and shapes are those of the model that transformers builds, or those published where it has none.

    Where its modules are called otherwise than the published tensors, that is a layout of the family's too.
    """
    values = model.preset.values(tiny=True)
    theirs = openelm_shapes(values, openelm_lists(values)) if model.family.name == "openelm" else shapes(values)
    table = model.family.weight_map_of(config_of(model), theirs)
    ours = {name: tuple(tensor.shape) for name, tensor in original_layout(empty(model), table).items()}
    assert ours == theirs


def shapes(values: Mapping[str, Any]) -> Shapes:
    import transformers

    config = transformers.AutoConfig.for_model(**deepcopy(dict(values)))  # which completes the objects inside it
    kinds = {"t5": "Seq2SeqLM", "moonshine": "SpeechSeq2Seq"}
    pictured = "ImageTextToText" if hasattr(config, "vision_config") else "CausalLM"
    kind = getattr(transformers, f"AutoModelFor{kinds.get(config.model_type, pictured)}")
    with torch.device("meta"):
        original = kind.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in original.named_parameters()}


def openelm_shapes(values: Mapping[str, Any], lists: Mapping[str, list[int]]) -> Shapes:
    """The published tensors, eight a layer and two more."""
    width, head_dim = values["model_dim"], values["head_dim"]
    found: Shapes = {
        "transformer.token_embeddings.weight": (values["vocab_size"], width),
        "transformer.norm.weight": (width,),
    }
    layers = zip(lists["num_query_heads"], lists["num_kv_heads"], lists["widths"], strict=True)
    for i, (heads, kv_heads, hidden) in enumerate(layers):
        parts = {
            "attn_norm": (width,),
            "attn.qkv_proj": ((heads + 2 * kv_heads) * head_dim, width),
            "attn.q_norm": (head_dim,),
            "attn.k_norm": (head_dim,),
            "attn.out_proj": (width, heads * head_dim),
            "ffn_norm": (width,),
            "ffn.proj_1": (2 * hidden, width),
            "ffn.proj_2": (width, hidden),
        }
        found |= {f"transformer.layers.{i}.{name}.weight": shape for name, shape in parts.items()}
    return found


@EVERY_PRESET
def test_tensors_of_the_published_size(model: registry.Model) -> None:
    """As many stored tensors at the full size as the published file has, where that number is known."""
    config = model.family.config_from(HFConfig(model.preset.values(), model.name))
    layout = original_layout(model.family.build(config, device="meta"), model.family.weight_map(config))
    assert len(layout) == PUBLISHED_TENSORS.get(model.name, len(layout))
    if not model.encodes:
        assert len({name.split(".")[2] for name in layout if ".layers." in name}) == len(config.blocks)


@EVERY_DECODER
def test_loaded_model_computes_the_originals_logits(model: registry.Model, original_logits: Logits) -> None:
    """Every tensor is in the right place: one file gives the original's logits, gains and biases all drawn."""
    source = checkpoint_for(model)
    for tensor in source.values():
        tensor.mul_(tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.3).add_(0.0 if tensor.ndim == 2 else 1.0)
    ours = load(model, source)
    tokens = torch.randint(ours.config.vocab_size, (1, 20), generator=torch.Generator().manual_seed(1))
    theirs = original_logits(model.preset.values(tiny=True), source, tokens)
    with torch.no_grad():
        logits = ours(tokens, torch.arange(20), ours.empty_cache(24))["logits"]
    # Two correct float32 models are each about 1e-6 from the exact result; an exchanged tensor is off by a tenth.
    assert float((logits - theirs).norm() / theirs.norm()) < 1e-5


@EVERY_PRESET
def test_loaded_parameters_are_plain_float32(model: registry.Model) -> None:
    """Nothing stays on the meta device, asks for gradients, or keeps the storage dtype."""
    loaded = load(model, checkpoint_for(model, dtype=torch.bfloat16))
    for name, parameter in loaded.named_parameters():
        assert (name, parameter.dtype, parameter.device.type) == (name, torch.float32, "cpu")
        assert parameter.is_contiguous()
        assert not parameter.requires_grad
    assert not any(buffer.is_meta for buffer in loaded.buffers())


@LAWS
@given(rows=st.lists(sizes, min_size=1, max_size=5), width=sizes, seed=seeds)
def test_split_and_fuse_are_exact_inverses(rows: list[int], width: int, seed: int) -> None:
    """Rows are cut in order; cutting what was stacked, or stacking what was cut, gives the same bits."""
    whole = random(sum(rows), width, seed=seed)
    names = tuple(f"part{i}" for i in range(len(rows)))
    cut = dict(zip(names, whole.split(rows), strict=True))
    split = Split("whole", names, tuple(rows))
    parts = holder(**{name: tuple(value.shape) for name, value in cut.items()})
    assert equal(inverted(parts, split, {"whole": whole}), {"whole": whole})
    assert equal(dict(parts.named_parameters()), cut)
    fuse = Fuse(names, "whole", tuple(rows))
    stacked = holder(whole=tuple(whole.shape))
    assert equal(inverted(stacked, fuse, cut), cut)
    assert torch.equal(stacked.whole, whole)


@LAWS
@given(rows=st.lists(sizes, min_size=2, max_size=4), seed=seeds)
def test_split_works_on_vectors(rows: list[int], seed: int) -> None:
    """Biases are cut the same way as matrices."""
    whole = random(sum(rows), seed=seed)
    names = tuple(f"part{i}" for i in range(len(rows)))
    parts = holder(**{name: (count,) for name, count in zip(names, rows, strict=True)})
    assert equal(inverted(parts, Split("whole", names, tuple(rows)), {"whole": whole}), {"whole": whole})


@LAWS
@given(rows=sizes, columns=sizes, seed=seeds)
def test_transpose_is_its_own_inverse(rows: int, columns: int, seed: int) -> None:
    """The parameter is the matrix turned round, in memory too, and turns back to the same bits."""
    source = {"a": random(rows, columns, seed=seed)}
    module = holder(b=(columns, rows))
    assert equal(inverted(module, Transpose("a", "b"), source), source)
    assert torch.equal(module.b, source["a"].t())
    assert module.b.is_contiguous()


@LAWS
@given(
    values=st.lists(st.floats(-1024, 1024, width=32), min_size=1, max_size=20),
    constant=st.sampled_from([1.0, -1.0, 0.5]),
)
def test_add_constant_inverts_to_one_rounding(values: list[float], constant: float) -> None:
    """Only the sum is rounded: the difference is exact. So a value is back within half a unit of its sum."""
    source = {"a": torch.tensor(values)}
    module = holder(b=(len(values),))
    back = inverted(module, AddConstant("a", "b", constant), source)["a"].double()
    exact = source["a"].double() + constant
    assert ((module.b.double() - exact).abs() <= exact.abs() * 2.0**-24).all()
    assert ((back - source["a"].double()).abs() <= exact.abs() * 2.0**-24).all()


def test_rename_and_drop() -> None:
    """A rename keeps the bits; a drop consumes what is there, minds nothing that is not, and writes nothing back."""
    source = {"a": random(3, 2, seed=0)}
    table = [Rename("a", "b"), Drop("old", "not needed")]
    for extra in ({}, {"old": torch.tensor([float("nan")])}):
        module = holder(b=(3, 2))
        load_weights(module, table, {**source, **extra})
        assert torch.equal(module.b, source["a"])
        assert equal(original_layout(module, table), source)


def test_per_layer_fills_every_name() -> None:
    """The layer index replaces every {}, in single names and in tuples of them, layers in order."""
    rows = [
        Rename("s.{}.a", "t.{}.a"),
        Split("s.{}.qkv", ("t.{}.q", "t.{}.k"), (2, 1)),
        Fuse(("s.{}.g", "s.{}.u"), "t.{}.gu", (1, 1)),
        AddConstant("s.{}.n", "t.{}.n", 1.0),
        Drop("s.{}.x", "unused"),
    ]
    expanded = list(per_layer(rows, 2))
    assert expanded[:5] == [row.at_layer(0) for row in rows]
    assert expanded[5:] == [
        Rename("s.1.a", "t.1.a"),
        Split("s.1.qkv", ("t.1.q", "t.1.k"), (2, 1)),
        Fuse(("s.1.g", "s.1.u"), "t.1.gu", (1, 1)),
        AddConstant("s.1.n", "t.1.n", 1.0),
        Drop("s.1.x", "unused"),
    ]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Rename("a", "b"), "rename"),
        (Transpose("a", "b"), "transpose"),
        (AddConstant("a", "b", 1.0), "add 1"),
        (Split("a", ("b", "c"), (2, 3)), "split rows 2 + 3"),
        (Fuse(("a", "b"), "c", (2, 3)), "fuse rows 2 + 3"),
        (Tie("a", "b", "c", ("d",)), "tie, also c"),
        (Drop("a", "recomputed"), "drop: recomputed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_descriptions(operation: Operation, expected: str) -> None:
    """What `parity weights` prints beside a row."""
    assert operation.description == expected


# -- strictness: the checkpoint


@EVERY_PRESET
def test_every_missing_tensor_is_refused_by_name(model: registry.Model) -> None:
    """Whichever tensor the file lacks, the message names it."""
    source = checkpoint_for(model)
    for name in source:
        with pytest.raises(CheckpointError) as caught:
            load(model, {key: value for key, value in source.items() if key != name})
        assert f"has no tensor {name}" in one_line(caught)


def test_missing_tensor_suggests_the_nearest_name() -> None:
    """A renamed tensor is found by the person who reads the message."""
    source = checkpoint_for(UNTIED)
    source["model.norm.weights"] = source.pop("model.norm.weight")
    with pytest.raises(
        CheckpointError, match=r"no tensor model\.norm\.weight; the nearest .* is model\.norm\.weights$"
    ):
        load(UNTIED, source)


@pytest.mark.parametrize("extra", ["model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "x"])
def test_extra_tensor_is_refused_by_name(extra: str) -> None:
    """A further layer, a bias the configuration denies, anything unknown: refused, because the original may use it."""
    with pytest.raises(CheckpointError) as caught:
        load(UNTIED, {**checkpoint_for(UNTIED), extra: torch.zeros(2)})
    assert one_line(caught).startswith(f"{extra} is in the checkpoint but has no place in the model")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[:-1],
        lambda tensor: tensor[:, :-1],
        lambda tensor: tensor.t(),
        lambda tensor: tensor.flatten(),
        lambda tensor: tensor[None],
        lambda tensor: tensor[:0],
        lambda tensor: tensor[0, 0],
    ],
    ids=["fewer rows", "fewer columns", "transposed", "flat", "extra axis", "empty", "scalar"],
)
def test_wrong_shape_is_refused_by_name(change: Callable[[Tensor], Tensor]) -> None:
    """Shapes must be equal, also where torch would broadcast or the number of elements agrees."""
    source = checkpoint_for(UNTIED)
    wanted = list(source[TENSOR].shape)
    source[TENSOR] = change(source[TENSOR])
    with pytest.raises(CheckpointError) as caught:
        load(UNTIED, source)
    message = one_line(caught)
    assert message.startswith(f"{TENSOR} has shape {list(source[TENSOR].shape)}")
    assert str(wanted) in message


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float64, torch.float8_e4m3fn, torch.complex64],
    ids=str,
)
def test_wrong_dtype_is_refused_by_name(dtype: torch.dtype) -> None:
    """Quantized, doubled or other storage is refused: it does not convert to float32 without loss or scales."""
    source = checkpoint_for(UNTIED)
    source[TENSOR] = source[TENSOR].abs().to(dtype)
    with pytest.raises(CheckpointError) as caught:
        load(UNTIED, source)
    assert one_line(caught).startswith(f"{TENSOR} is stored as {str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float, dtype: torch.dtype) -> None:
    """A single one, in the last place, in any storage dtype."""
    source = checkpoint_for(UNTIED, dtype=dtype)
    source[TENSOR][-1, -1] = value
    with pytest.raises(CheckpointError) as caught:
        load(UNTIED, source)
    assert one_line(caught).startswith(f"{TENSOR} holds NaN or infinity")


def test_rotary_frequencies_are_dropped() -> None:
    """Old files hold inv_freq for every layer; it is recomputed, so its values do not matter."""
    source = checkpoint_for(UNTIED)
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((8,), float("nan")) for i in range(3)}
    loaded = load(UNTIED, {**source, **old})
    assert equal(original_layout(loaded, table_of(UNTIED)), source)
    beyond = "model.layers.3.self_attn.rotary_emb.inv_freq"
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.self_attn\.rotary_emb\.inv_freq"):
        load(UNTIED, {**source, beyond: torch.ones(8)})


def table_name(model: registry.Model) -> str:
    return next(row.source for row in table_of(model) if isinstance(row, Tie))


@EVERY_TIED
def test_tied_head_is_one_parameter(model: registry.Model) -> None:
    """Embedding and head share memory, and the file holds the table once."""
    loaded = load(model, checkpoint_for(model))
    assert loaded.head.projection.weight is loaded.embed.tokens.weight
    assert "lm_head.weight" not in original_layout(loaded, table_of(model))


@EVERY_TIED
def test_repeated_head_is_accepted_when_equal(model: registry.Model) -> None:
    """Some tied files store the head as well; equal values do no harm."""
    source = checkpoint_for(model)
    loaded = load(model, {**source, "lm_head.weight": source[table_name(model)].clone()})
    assert equal(original_layout(loaded, table_of(model)), source)
    assert loaded.head.projection.weight is loaded.embed.tokens.weight


@pytest.mark.parametrize(
    "change",
    [lambda table: table + 1e-6, lambda table: table[:-1], lambda table: table.flatten()],
    ids=["values", "rows", "axes"],
)
@EVERY_TIED
def test_repeated_head_is_refused_when_different(model: registry.Model, change: Callable[[Tensor], Tensor]) -> None:
    """A file whose head differs although its configuration ties them contradicts itself."""
    source = checkpoint_for(model)
    with pytest.raises(CheckpointError) as caught:
        load(model, {**source, "lm_head.weight": change(source[table_name(model)])})
    message = one_line(caught)
    assert message.startswith(f"lm_head.weight differs from {table_name(model)}")


@pytest.mark.parametrize(
    ("head", "words"),
    [(torch.tensor([float("nan")]), "holds NaN"), (torch.tensor([1], dtype=torch.int8), "is stored as int8")],
    ids=["nan", "int8"],
)
@EVERY_TIED
def test_repeated_head_is_checked_like_any_tensor(model: registry.Model, head: Tensor, words: str) -> None:
    """Being compared only does not excuse a damaged or quantized head."""
    with pytest.raises(CheckpointError, match=f"lm_head.weight {words}"):
        load(model, {**checkpoint_for(model), "lm_head.weight": head})


def test_untied_head_must_be_stored() -> None:
    """Without a head of its own, an untied model is not completed from the embedding."""
    source = checkpoint_for(UNTIED)
    del source["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight"):
        load(UNTIED, source)


# -- strictness: the table


def test_parameter_produced_twice_is_refused_by_name() -> None:
    """A table that fills a parameter a second time is wrong, whatever it fills it with."""
    table = [*table_of(UNTIED), Rename("again", "head.norm.weight")]
    source = {**checkpoint_for(UNTIED), "again": torch.ones(128)}
    with pytest.raises(CheckpointError) as caught:
        load_weights(empty(UNTIED), table, source)
    assert "head.norm.weight" in one_line(caught)


def test_parameter_that_does_not_exist_is_refused_by_name() -> None:
    """So is one that fills a parameter the model lacks."""
    table = [*table_of(UNTIED), Rename("extra", "head.norm.bias")]
    with pytest.raises(CheckpointError) as caught:
        load_weights(empty(UNTIED), table, {**checkpoint_for(UNTIED), "extra": torch.ones(128)})
    assert "head.norm.bias" in one_line(caught)


@EVERY_PRESET
def test_parameter_never_produced_is_refused_by_name(model: registry.Model) -> None:
    """Whichever row a table lacks, the parameter that stays empty is named."""
    table, source = table_of(model), checkpoint_for(model)
    for row in table:
        if isinstance(row, Drop):
            continue
        shorter = [other for other in table if other is not row]
        rest = {name: tensor for name, tensor in source.items() if name not in row.sources}
        with pytest.raises(CheckpointError) as caught:
            load_weights(empty(model), shorter, rest)
        message = one_line(caught)
        assert message.startswith("the weight map produces no ")
        assert message.rpartition(" ")[2] in row.targets


def small(operation: Operation, source: dict[str, Any], **shapes: tuple[int, ...]) -> None:
    tensors = {name: torch.arange(float(torch.tensor(shape).prod())).reshape(shape) for name, shape in source.items()}
    load_weights(holder(**shapes), [operation], tensors)


@pytest.mark.parametrize(
    ("operation", "source", "shapes"),
    [
        (Split("first", ("b", "c"), (2, 3)), {"first": (6, 2)}, {"b": (2, 2), "c": (3, 2)}),
        (Fuse(("first", "second"), "c", (2, 3)), {"first": (2, 2), "second": (3, 4)}, {"c": (5, 2)}),
        (Transpose("first", "b"), {"first": (2, 3, 4)}, {"b": (3, 2)}),
    ],
    ids=["split", "fuse", "transpose"],
)
def test_shapes_an_operation_cannot_take_are_refused_by_name(
    operation: Operation, source: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    """A tensor that cannot be cut, stacked or turned as the row says is the checkpoint's error, with its name."""
    with pytest.raises(CheckpointError, match=r"first|second"):
        small(operation, source, **shapes)


def test_fused_parts_must_have_their_own_rows() -> None:
    """Parts of 3 and 2 rows where the table says 2 and 3 add up to the right shape and are wrong all the same."""
    with pytest.raises(CheckpointError, match=r"first|second"):
        small(Fuse(("first", "second"), "c", (2, 3)), {"first": (3, 2), "second": (2, 2)}, c=(5, 2))


def test_source_consumed_twice_is_refused_by_name() -> None:
    """Every source tensor is consumed exactly once: two parameters from one tensor are a Tie or a mistake."""
    with pytest.raises(CheckpointError, match="first"):
        load_weights(holder(b=(2,), c=(2,)), [Rename("first", "b"), Rename("first", "c")], {"first": torch.ones(2)})
