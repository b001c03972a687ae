"""Every ingredient of a file makes another key, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import registry
from models.authoring.session import EncoderCall, SessionInputs
from parity.artifacts import forms, identity
from parity.artifacts.cache import DAMAGE
from parity.artifacts.identity import key_of, of_conversion, of_quantization, of_recording, sources, versions
from parity.convert.float_file import Export, FloatFile
from parity.convert.quantize import WeightPrecision
from parity.convert.recipes import get_recipe, with_encoder
from parity.convert.rounding import Rounding
from parity.convert.stages import StagedFile
from parity.faults.planting import Rewrite, plant
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.stages import Layout
from parity.weights import Weights, resolve


def session(rows: int = 3, *, content: float = 0.0, constant: int = 3) -> SessionInputs:
    return SessionInputs(
        calls=(EncoderCall("encode", {"pixels": np.full((1, rows, 4), content, np.float32)}, rows),),
        per_position={"image_rows": np.full(5, -1, np.int32)},
        constant={"prefix_length": np.asarray([constant], np.int32)},
    )


EXPORT = Export(prefill_lengths=(8, 16), cache_length=64, sessions=(session(),))


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    return Weights("path", "checkpoint", tmp_path, "ab" * 32, None)


EXPORTS: dict[str, Callable[[Export], Export]] = {
    "prefill": lambda export: replace(export, prefill_lengths=(8,)),
    "cache": lambda export: replace(export, cache_length=128),
    "plain": lambda export: replace(export, plain=True),
    "logits": lambda export: replace(export, prefill_logits=False),
    "shapes": lambda export: replace(export, sessions=(session(4),)),
    "constants": lambda export: replace(export, sessions=(session(constant=2),)),
    "another session": lambda export: replace(export, sessions=(session(), session(4))),
    "no sessions": lambda export: replace(export, sessions=(SessionInputs(),)),
    "whole": lambda export: replace(export, sessions=(replace(session(), whole=True),)),
    "entry": lambda export: replace(export, sessions=(replace(session(), prefill=None),)),
}


@pytest.mark.parametrize("change", EXPORTS.values(), ids=EXPORTS.keys())
def test_another_export_is_another_file(weights: Weights, change: Callable[[Export], Export]) -> None:
    """Whatever of it changes."""
    assert key_of(of_conversion("float", "llama", weights, change(EXPORT))) != key_of(
        of_conversion("float", "llama", weights, EXPORT)
    )


def test_another_checkpoint_family_or_kind_is_another_file(weights: Weights) -> None:
    """By contents: of the weights, and of the configuration beside them."""
    before = key_of(of_conversion("float", "llama", weights, EXPORT))
    others = [
        of_conversion("staged", "llama", weights, EXPORT),
        of_conversion("float", "phi", weights, EXPORT),
        of_conversion("float", "llama", replace(weights, sha256="cd" * 32), EXPORT),
    ]
    (weights.folder / "config.json").write_text('{"hidden_size": 5}')
    others.append(of_conversion("float", "llama", weights, EXPORT))
    assert len({before, *map(key_of, others)}) == 5


def test_the_same_is_the_same(weights: Weights, tmp_path: Path) -> None:
    """Wherever it lies, whatever it is called, however many prompts are as large, and whatever is in them."""
    before = key_of(of_conversion("float", "llama", weights, EXPORT))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_bytes((weights.folder / "config.json").read_bytes())
    moved = Weights("hub", "another", elsewhere, weights.sha256, "main")
    more = replace(EXPORT, sessions=(session(content=1.0), session(content=2.0)))
    assert key_of(of_conversion("float", "llama", moved, more)) == before
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


def test_another_recipe_source_or_name_is_another_file(tmp_path: Path) -> None:
    """A recipe counts by its rules: a file of rules by what is in it, whatever it is called."""
    rules = tmp_path / "mine.json"
    rules.write_text(json.dumps([{"regex": ".*", "operation": "*"}]))
    int8, fp16, mine = get_recipe("dynamic_int8"), get_recipe("fp16"), get_recipe(str(rules))
    made = [
        of_quantization("ab", ["x", "y"], int8),
        of_quantization("cd", ["x", "y"], int8),
        of_quantization("ab", ["x", "z"], int8),
        of_quantization("ab", ["xy"], int8),
        of_quantization("ab", ["x", "y"], fp16),
        of_quantization("ab", ["x", "y"], with_encoder(int8, "fp16")),
        of_quantization("ab", ["x", "y"], mine),
    ]
    renamed = of_quantization("ab", ["x", "y"], replace(int8, name="another", suffix="q"))
    assert key_of(renamed) == key_of(made[0])
    rules.write_text(json.dumps([{"regex": ".+", "operation": "*"}]))
    made.append(of_quantization("ab", ["x", "y"], mine))
    assert len(set(map(key_of, made))) == 8


def test_versions_are_of_everything_installed() -> None:
    """Those of what converts among them, and of what it calls in turn."""
    found = {name.lower().replace("_", "-") for name in versions()}
    assert {"litert-torch", "litert-converter", "ai-edge-quantizer", "torch", "jax", "numpy", "python"} <= found


def test_what_is_installed_twice_counts_by_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, version in (("first", "2.0"), ("second", "1.0")):
        folder = tmp_path / place / f"twice_there-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: twice-there\nVersion: {version}\n")
    for place in ("second", "first"):
        monkeypatch.syspath_prepend(tmp_path / place)
    assert versions()["twice-there"] == "2.0"


def test_what_originals_compute_with_counts(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is told to round otherwise is another original."""
    (weights.folder / "model.safetensors").touch()
    inputs = Inputs("set", "", "cd" * 32, "ef" * 32, (TokenizedPrompt("a", (1, 2), (3,)),))

    def key() -> str:
        return key_of(of_recording("original", weights, inputs, {"threads": 1}))

    before = key()
    assert key() == before
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "BF16")
    assert key() != before


def test_sources_count_by_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module edited, renamed, added or removed makes another hash; where the project lies does not."""
    (tmp_path / "sourced" / "inner").mkdir(parents=True)
    for name in ("__init__", "a", "inner/__init__", "inner/b"):
        (tmp_path / "sourced" / f"{name}.py").write_text(f"# {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(identity, "FILES", ("sourced",))
    inner = tmp_path / "sourced" / "inner"
    seen = [sources()]
    (inner / "b.py").write_text("# B\n")
    seen.append(sources())
    (inner / "b.py").rename(inner / "c.py")
    seen.append(sources())
    (inner / "d.py").write_text("")
    seen.append(sources())
    assert None not in seen
    assert len({each.files for each in seen}) == 4
    assert len({each.originals for each in seen}) == len({each.ports for each in seen}) == 1
    (inner / "d.py").unlink()
    assert sources() == seen[2]
    for stray in (".#b.py", "._b.py", "b.backup.py", ".checkpoints/b.py"):
        (inner / stray).parent.mkdir(exist_ok=True)
        (inner / stray).symlink_to("nowhere")
    assert sources() == seen[2], "what no import can name is no module"


def test_sources_that_cannot_be_read_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is listed and gone when it is read; nothing is raised, and what it does not count for is known."""
    (tmp_path / "vanishing").mkdir()
    (tmp_path / "vanishing" / "__init__.py").write_text("")
    (tmp_path / "vanishing" / "gone.py").symlink_to("nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(identity, "FILES", ("vanishing",))
    found = sources()
    assert found
    assert not found.files
    assert None not in (found.originals, found.ports)
    for kind in ("ORIGINALS", "PORTS"):
        monkeypatch.setattr(identity, kind, ("vanishing",))
    assert sources() is None


def test_the_sources_are_those_of_the_models_and_of_the_conversion() -> None:
    """Deep ones and plain ones."""
    found = modules(identity.FILES)
    wanted = {"models.layers.norm", "models.llama", "models", "parity.convert.float_file", "parity.convert.lowerings"}
    assert wanted <= found
    assert not any(name.startswith(("parity.compare", "parity.report")) for name in found)


def test_what_originals_record_does_not_depend_on_any_port() -> None:
    """So that whoever works on one does not wait for the original again and again."""
    found = modules(identity.ORIGINALS)
    assert {"parity.runners.original", "parity.inputs", "parity.trace", "models.authoring.session"} <= found
    assert not any(name.startswith("models.") and not name.startswith("models.authoring") for name in found)


@pytest.mark.parametrize("model", ["smollm-135m", "openelm-270m"])
@pytest.mark.parametrize("answering", ["base", "conveyor"])
def test_an_original_runs_no_code_that_does_not_count(model: str, answering: str) -> None:
    """What its process imports of this project is among what is hashed, but for what only says what is wrong."""
    folder = resolve(registry.get(model), "tiny").folder
    program = (
        "import sys; from pathlib import Path; from parity.inputs import Inputs, TokenizedPrompt; "
        f"from parity.runners.{answering} import answer; from parity.runners.original import Original; "
        "inputs = Inputs('', '', '', '', (TokenizedPrompt('p', (1, 2), (3,)),)); "
        f"answer(Original(Path({str(folder)!r})), inputs, 2, None, lambda *_: None); "
        "print(*(name for name in sys.modules if name.split('.')[0] in ('models', 'parity')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "parity.runners.original" in imported
    assert imported - modules(identity.ORIGINALS) <= {"models", "models.authoring", "models.errors", "parity"}


@pytest.mark.parametrize("model", ["smollm-135m", "t5-small", "qwen2.5-vl-3b"])
@pytest.mark.parametrize("answering", ["base", "conveyor"])
def test_a_port_runs_no_code_that_does_not_count(model: str, answering: str) -> None:
    resolved = resolve(registry.get(model), "tiny").folder
    program = (
        "import sys; from pathlib import Path; "
        f"from parity.runners.{answering} import answer; from parity.runners.reauthored import Reauthored; "
        f"runner = Reauthored({registry.get(model).family.name!r}, Path({str(resolved)!r}), (32,)); "
        f"opened = runner.{'open' if answering == 'base' else 'stream'}(); opened.__enter__(); "
        "print(*(name for name in sys.modules if name.split('.')[0] in ('models', 'parity')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "parity.runners.reauthored" in imported
    assert imported - modules(identity.PORTS) <= {"parity"}


def modules(packages: tuple[str, ...]) -> set[str]:
    return {name for package in packages for name, _ in identity._modules(package)}


@pytest.mark.parametrize(
    ("module", "known"),
    [
        ("models.layers.mask", "originals"),
        ("models.authoring.decoder", "originals"),
        ("models.authoring.session", ""),
        ("parity.convert.float_file", "originals ports"),
        ("parity.runners.original", "files"),
        ("parity.artifacts.cache", ""),
    ],
)
def test_sources_are_unknown_where_a_fault_is_planted(tmp_path: Path, module: str, known: str) -> None:
    """Whether the module was imported already or will be: the files on disk are not what runs."""
    program = (
        "from dataclasses import asdict\nfrom parity.artifacts.identity import sources\n"
        "def known():\n    code = sources()\n"
        "    return [kind for kind, found in asdict(code).items() if found] if code else []\n"
        f"early = known()\nimport {module}\nprint(early == known(), *early)"
    )

    def printed(*path: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *sys.path])}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    plant([Rewrite(module, "from __future__ import annotations\n", "from __future__ import annotations\n\n")], tmp_path)
    assert printed(str(tmp_path)) == f"True {known}".strip()
    assert printed() == "True files originals ports"


PATH = Path("made.tflite")
FLOAT = FloatFile(PATH, EXPORT, ("prefill_8", "decode"), ("tokens", "blocks.0.q"), {"loading": 0.5})
STAGED = StagedFile(
    FLOAT,
    Layout(64, {"decode": {"tokens": (1, 1), "input_pos": (1,)}, "prefill_8": {"tokens": (1, 8)}}),
    {"decode": [("embed", ("tokens",)), ("head", ("x", "kv_cache_k_0"))]},
    {"decode": ("logits", "kv_cache_k_0")},
    {"kv_cache_k_0": (1, 64, 1, 8)},
)
PRECISIONS = [
    WeightPrecision("a", "int8 channelwise", None, Rounding(0.49999999999999994, 1.0), dynamic=True),
    WeightPrecision("b", "float32", "int4 block 32"),
]
FORMS: list[tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = [
    (FLOAT, forms.write_float, lambda value: forms.read_float(value, PATH, EXPORT)),
    (STAGED, forms.write_staged, lambda value: forms.read_staged(value, PATH, EXPORT)),
    (PRECISIONS, forms.write_precisions, forms.read_precisions),
]


@pytest.mark.parametrize(("value", "write", "read"), FORMS, ids=["float", "staged", "quantized"])
def test_what_is_known_of_a_file_comes_back_as_it_was(value, write, read) -> None:
    """Through JSON, in the same order."""
    again = read(json.loads(json.dumps(write(value))))
    assert again == value
    if value is STAGED:
        assert list(again.layout.signatures) == list(value.layout.signatures)


@pytest.mark.parametrize(("value", "write", "read"), FORMS, ids=["float", "staged", "quantized"])
def test_what_is_of_another_kind_is_refused(value, write, read) -> None:
    """Every part of it in turn replaced by something else."""
    whole = json.loads(json.dumps(write(value)))
    changes = list(replaced(whole))
    assert len(changes) > 5
    for changed in changes:
        with pytest.raises(DAMAGE):
            read(changed)


def replaced(value: Any) -> list[Any]:
    """Copies of a JSON value with one part of it, at any depth, of another kind."""
    other: list[Any] = [{"no": 1}] if not isinstance(value, dict) else [7]
    if isinstance(value, dict):
        other += [{**value, key: changed} for key, item in value.items() for changed in replaced(item)]
    if isinstance(value, list):
        other += [[*value[:i], changed, *value[i + 1 :]] for i, item in enumerate(value) for changed in replaced(item)]
    return other
