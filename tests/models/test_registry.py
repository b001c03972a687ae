"""The table of models: every preset is what it says, names are found, and looking costs nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import models
from models import registry
from models.authoring.config import BlockConfig
from models.authoring.hf_config import HFConfig
from models.errors import UnknownModelError

EVERY_PRESET = pytest.mark.parametrize("model", list(registry.models()), ids=lambda model: model.name)
EVERY_DECODER = pytest.mark.parametrize(
    "model", [model for model in registry.models() if not model.encodes], ids=lambda model: model.name
)
SOURCES = Path(models.__file__).parent
#: Keys that give the scores' scale otherwise than through the head's size.
SCALE_KEYS = ("query_pre_attn_scalar",)
#: The contract's models so far, and their aliases.
CONTRACT = {
    "gemma-2b": (),
    "gemma-7b": (),
    "gemma-2-2b": ("gemma2",),
    "llama-3.2-1b": (),
    "llama-3.2-3b": (),
    "tinyllama-1.1b": (),
    "paligemma-3b-224": (),
    "paligemma-2-3b-224": (),
    "phi-2": ("phi2",),
    "phi-3.5-mini": ("phi3.5",),
    "phi-4-mini": ("phi4",),
    "openelm-270m": (),
    "openelm-450m": (),
    "openelm-1.1b": (),
    "openelm-3b": (),
    "smollm-135m": (),
    "smollm-360m": (),
    "smollm-1.7b": (),
    "smollm2-135m": (),
    "smollm2-360m": (),
    "smollm2-1.7b": (),
    "qwen2.5-0.5b": (),
    "qwen2.5-1.5b": (),
    "qwen2.5-3b": (),
    "qwen2.5-vl-3b": (),
    "deepseek-r1-distill-qwen-1.5b": ("deepseek",),
    "amd-llama-135m": (),
}


def imported_by(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, functions included; ``from a import b`` counts as a and a.b."""
    found = set()
    package = ("models", *path.relative_to(SOURCES).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            found.update({start, *(f"{start}.{alias.name}" for alias in node.names)})
    return found


def kind_of(block: BlockConfig) -> tuple[object, ...]:
    """What a block is, without its sizes."""
    attention = block.attention
    return (
        *(block.attention_norm, block.mlp_norm, block.post_attention_norm, block.post_mlp_norm),
        *(attention.qkv_bias, attention.output_bias, attention.qk_norm),
        *(attention.softcap is not None, attention.window is not None),
        *(block.mlp.activation, block.mlp.gated, block.mlp.bias),
    )


@EVERY_PRESET
def test_parameter_count(model: registry.Model) -> None:
    """The model at its full size has as many parameters as were published; a tied table counts once."""
    config = model.family.config_from(HFConfig(model.preset.values(), model.name))
    built = model.family.build(config, device="meta")
    assert sum(parameter.numel() for parameter in built.parameters()) == model.preset.parameters
    assert all(parameter.is_meta for parameter in built.parameters())


@EVERY_DECODER
def test_tiny_keeps_every_quirk(model: registry.Model) -> None:
    """Shrunk are the sizes alone: ties, biases, activations, grouping, rotary share and scaling rule stay."""
    full, tiny = (
        model.family.config_from(HFConfig(model.preset.values(tiny=tiny), model.name)) for tiny in (False, True)
    )
    assert tiny.vocab_size < full.vocab_size
    assert tiny.width < full.width
    assert 1 < len(tiny.blocks) < len(full.blocks)
    assert tiny.tied_head == full.tied_head
    assert tiny.final_norm == full.final_norm
    assert tiny.head_bias == full.head_bias
    assert (tiny.final_softcap is None) == (full.final_softcap is None)
    assert [c.embedding_scale == c.width**0.5 for c in (tiny, full)] in ([True, True], [False, False])
    assert (tiny.embedding_scale == 1.0) == (full.embedding_scale == 1.0)
    assert tiny.rope.theta == full.rope.theta
    assert type(tiny.rope.scaling) is type(full.rope.scaling)
    layouts = [{kind_of(block) for block in config.blocks} for config in (tiny, full)]
    assert layouts[0] == layouts[1]  # every kind of block that the model has
    assert [len({(b.attention.num_heads, b.mlp.hidden) for b in c.blocks}) > 1 for c in (tiny, full)] in (
        [True, True],
        [False, False],
    )
    for small, large in zip(tiny.blocks, full.blocks, strict=False):
        assert small.attention_norm == large.attention_norm
        assert small.mlp_norm == large.mlp_norm
        assert small.post_attention_norm == large.post_attention_norm
        assert small.post_mlp_norm == large.post_mlp_norm
        ours, theirs = small.attention, large.attention
        assert ours.num_heads / ours.num_kv_heads == theirs.num_heads / theirs.num_kv_heads
        assert tiny.rope.rotary_dim / ours.head_dim == full.rope.rotary_dim / theirs.head_dim
        if key := next((key for key in SCALE_KEYS if key in model.preset.values()), None):
            # A number of its own, which at the full size is the head's: the tiny one tells the two apart.
            small_scale, large_scale = (model.preset.values(tiny=tiny)[key] ** -0.5 for tiny in (True, False))
            assert (ours.scale, theirs.scale) == (small_scale, large_scale)
            assert ours.scale != ours.head_dim**-0.5
        else:
            assert ours.scale * ours.head_dim**0.5 == pytest.approx(theirs.scale * theirs.head_dim**0.5, rel=1e-12)
        assert (ours.softcap is None) == (theirs.softcap is None)
        assert (ours.window is None) == (theirs.window is None)
        assert ours.qk_norm == theirs.qk_norm
        assert (ours.qkv_bias, ours.output_bias) == (theirs.qkv_bias, theirs.output_bias)
        assert (small.mlp.activation, small.mlp.gated, small.mlp.bias) == (
            large.mlp.activation,
            large.mlp.gated,
            large.mlp.bias,
        )


@EVERY_PRESET
def test_every_name_finds_its_preset(model: registry.Model) -> None:
    """A preset's name and each of its aliases lead to it, and to its family."""
    for name in (model.name, *model.preset.aliases):
        found = registry.get(name)
        assert found.preset is model.preset
        assert found.family is model.family


def test_names_are_unique() -> None:
    """No two presets, aliases or families share a name; a shared one would hide a model."""
    names = [name for model in registry.models() for name in (model.name, *model.preset.aliases)]
    names += registry.FAMILIES
    assert len(names) == len(set(names))


def test_contract() -> None:
    """Every model that the contract promises is there, under its aliases too."""
    found = {model.name: model.preset.aliases for model in registry.models()}
    assert {name: aliases for name, aliases in found.items() if name in CONTRACT} == CONTRACT
    for name, aliases in CONTRACT.items():
        assert [registry.get(alias).name for alias in aliases] == [name] * len(aliases)


@pytest.mark.parametrize("name", list(registry.FAMILIES))
def test_family_name_gives_its_smallest_preset(name: str) -> None:
    """A family alone means the model that is quickest to run."""
    found = registry.get(name)
    assert found.family is registry.family(name)
    assert found.family.name == name
    assert found.preset.parameters == min(preset.parameters for preset in found.family.presets)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("llama-3.2-1", "llama-3.2-1b"),
        ("llama3.2-1b", "llama-3.2-1b"),
        ("Llama-3.2-1B", "llama-3.2-1b"),
        ("tinylama-1.1b", "tinyllama-1.1b"),
        ("smolm-135m", "smollm-135m"),
        ("smollm2-36Om", "smollm2-360m"),
        ("qwen2.5-05b", "qwen2.5-0.5b"),
        ("qwen-2.5-3b", "qwen2.5-3b"),
        ("depseek", "deepseek"),
        ("deepseek-r1", "deepseek"),
        ("lama", "llama"),
        ("qwen", "qwen2"),
        ("amd-llama-135", "amd-llama-135m"),
        ("gemma2b", "gemma-2b"),
        ("gemma2-2b", "gemma-2-2b"),
        ("gema", "gemma"),
        ("Phi-2", "phi-2"),
        ("phi3.5-mini", "phi-3.5-mini"),
        ("phi-4", "phi4"),
        ("openelm-1.1", "openelm-1.1b"),
        ("OpenELM-270M", "openelm-270m"),
    ],
)
def test_typos_are_told_what_was_meant(typo: str, meant: str) -> None:
    """One line that repeats the wrong name and offers the right one."""
    with pytest.raises(UnknownModelError) as caught:
        registry.get(typo)
    message = str(caught.value)
    assert repr(typo) in message
    offered = message.partition("did you mean ")[2].removesuffix("?").split(", ")
    assert meant in offered
    assert "\n" not in message


@pytest.mark.parametrize("name", ["", "zzz", "\n", "42"])
def test_names_like_nothing(name: str) -> None:
    """Where nothing is close the message says where the list is."""
    with pytest.raises(UnknownModelError) as caught:
        registry.get(name)
    assert repr(name) in str(caught.value)
    assert "parity models" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_family_lists_the_families() -> None:
    """A family's name is exact: presets and aliases are none."""
    for name in ("lama", "deepseek", "llama-3.2-1b", "gemma2", "phi3"):
        with pytest.raises(UnknownModelError) as caught:
            registry.family(name)
        assert all(known in str(caught.value) for known in registry.FAMILIES)


def test_listing_imports_nothing_heavy() -> None:
    """`parity models` and `--help` answer at once: no torch, no transformers, no runtime, nothing of the harness."""
    script = (
        "import json, sys\n"
        "from models import registry\n"
        "names = [model.name for model in registry.models()]\n"
        "registry.get('deepseek')\n"
        "print(json.dumps([names, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=SOURCES.parent
    )
    names, imported = json.loads(result.stdout)
    assert names == [model.name for model in registry.models()]
    heavy = {
        "torch",
        "transformers",
        "numpy",
        "safetensors",
        "litert_torch",
        "ai_edge_litert",
        "huggingface_hub",
        "parity",
    }
    assert not heavy & set(imported)


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_models_never_import_the_harness(path: Path) -> None:
    """A model can be used without the harness that checks it."""
    assert not {name for name in imported_by(path) if name.partition(".")[0] == "parity"}


@pytest.mark.parametrize("path", sorted((SOURCES / "layers").glob("*.py")), ids=lambda path: path.name)
def test_layers_never_import_a_family(path: Path) -> None:
    """Building blocks know no model: neither a family, nor the registry, nor what a model is assembled from."""
    imported = imported_by(path)
    assert not imported & {*registry.FAMILIES.values(), "models.registry"}
    ours = {name for name in imported if name.startswith("models.")}
    assert all(name.startswith(("models.layers", "models.authoring.config")) for name in ours - {"models.authoring"})


def test_imports_are_seen() -> None:
    """The two tests above are not blind: the decoder imports layers, a family its neighbours."""
    assert "models.layers.attention" in imported_by(SOURCES / "authoring" / "decoder.py")
    assert "models.llama" in imported_by(SOURCES / "qwen2.py")
    assert "litert_torch.hlfb" in imported_by(SOURCES / "layers" / "composite.py")
