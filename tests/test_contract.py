"""What other people's scripts rely on, through the real command line: files, names, shapes, exit codes."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MODEL = "amd-llama-135m"
NUMBER = (int, float)
METRICS = (
    "rel_l2",
    "floor_ratio",
    "max_abs",
    "cosine",
    "kl_mean",
    "kl_p99",
    "kl_max",
    "top1_agreement",
    "top5_overlap",
    "perplexity_ratio",
)
#: The keys of one model's object and the types of their values; part of the contract.
SHAPE: dict[str, Any] = {
    "schema_version": int,
    "model": str,
    "family": str,
    "weights": {"kind": str, "sha256": str, "revision": (str, type(None))},
    "prompt_set": {"name": str, "sha256": str, "prompts": int, "positions": int},
    "rungs": [{"name": str, "seconds": NUMBER, "peak_rss_mb": NUMBER, "artifact": dict}],
    "edges": [
        {
            "reference": str,
            "candidate": str,
            "question": str,
            "verdict": str,
            "metrics": dict.fromkeys(METRICS, NUMBER),
            "limits": dict,
            "first_divergent_stage": (str, type(None)),
            "cause": (str, type(None)),
        }
    ],
    "generation": [{"rung": str, "matches": int, "of": int, "first_difference": (dict, type(None))}],
    "verdict": str,
    "environment": dict,
    "seconds": NUMBER,
}


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line answered."""

    code: int
    out: str
    err: str


def parity(*arguments: object, columns: int = 200) -> Outcome:
    """Run the command line in a fresh process, its output ``columns`` wide."""
    command = [sys.executable, "-m", "parity", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(columns)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_shape(value: Any, shape: Any, where: str) -> None:
    """``value`` has at least the keys of ``shape``, with the right types; numbers are finite and no booleans."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        for key, inner in shape.items():
            assert key in value, f"{where}.{key} is missing"
            assert_shape(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        assert value, f"{where} is empty"
        for number, item in enumerate(value):
            assert_shape(item, shape[0], f"{where}[{number}]")
    else:
        assert isinstance(value, shape), f"{where} is {value!r}"
        assert not isinstance(value, bool), f"{where} is {value!r}"
        if isinstance(value, float):
            assert math.isfinite(value), f"{where} is {value!r}"


def assert_all_finite(value: Any, where: str) -> None:
    """No number below is NaN or infinite."""
    if isinstance(value, dict):
        for key, inner in value.items():
            assert_all_finite(inner, f"{where}.{key}")
    elif isinstance(value, float):
        assert math.isfinite(value), where


# The report


@pytest.fixture(scope="module")
def report_file(tmp_path_factory) -> Path:
    """The JSON of one model's passing check."""
    path = tmp_path_factory.mktemp("report") / "one.json"
    outcome = parity("check", MODEL, "--rung", "reauthored", "--rung", "float", "--json", path)
    assert outcome.code == 0, outcome.out + outcome.err
    return path


@pytest.fixture(scope="module")
def report(report_file) -> dict[str, Any]:
    """The same, read."""
    return json.loads(report_file.read_text())


def test_report_has_every_key_of_the_contract(report) -> None:
    """Every key is there with its type, and no figure is NaN or infinite."""
    assert_shape(report, SHAPE, "report")
    for edge in report["edges"]:
        assert_all_finite(edge["metrics"], edge["candidate"])
    assert report["schema_version"] == 1


def test_report_says_what_was_run(report) -> None:
    """The rungs asked for are there as edges against the oracle, within their limits, over enough positions."""
    edges = {edge["candidate"]: edge for edge in report["edges"]}
    assert {"reauthored", "float"} <= set(edges)
    for edge in edges.values():
        assert edge["reference"] == "original64"
        assert edge["verdict"] == "PASS"
        assert 0 <= edge["metrics"]["top1_agreement"] <= 1
    for name in ("reauthored", "float"):
        assert edges[name]["question"] == "rounding"
        assert edges[name]["limits"]["floor_ratio"] == 3.0
        assert 0 < edges[name]["metrics"]["floor_ratio"] <= 3.0
    assert report["verdict"] == "PASS"
    assert (report["model"], report["family"], report["weights"]["kind"]) == (MODEL, "llama", "tiny")
    assert re.fullmatch("[0-9a-f]{64}", report["weights"]["sha256"])
    assert re.fullmatch("[0-9a-f]{64}", report["prompt_set"]["sha256"])
    assert report["prompt_set"]["positions"] >= 200
    assert {"original64", "original", "reauthored", "float"} == {rung["name"] for rung in report["rungs"]}
    for answer in report["generation"]:
        assert 0 <= answer["matches"] <= answer["of"]
        difference = answer["first_difference"]
        assert difference is None or (difference["at"] >= 0 and difference["kind"] in {"tie", "defect"})


def test_saved_report_is_rendered_again(report_file, tmp_path) -> None:
    """``parity report`` writes Markdown and HTML from a saved run, with its model, rungs and verdict."""
    markdown, html = tmp_path / "m.md", tmp_path / "h.html"
    outcome = parity("report", report_file, "--markdown", markdown, "--html", html)
    assert outcome.code == 0
    for text in (outcome.out, markdown.read_text(), html.read_text()):
        for word in (MODEL, "reauthored", "float", "PASS"):
            assert word in text
    assert "<html" in html.read_text()


def test_two_models_give_the_models_form(tmp_path) -> None:
    """With several models the file holds one such object for each, and the verdict of all."""
    path = tmp_path / "two.json"
    outcome = parity("check", MODEL, "qwen2.5-0.5b", "--rung", "reauthored", "--json", path)
    assert outcome.code == 0, outcome.out + outcome.err
    document = json.loads(path.read_text())
    assert (document["schema_version"], document["verdict"]) == (1, "PASS")
    assert [model["model"] for model in document["models"]] == [MODEL, "qwen2.5-0.5b"]
    for model in document["models"]:
        assert_shape(model, SHAPE, model["model"])


# Commands that answer at once


def test_help_answers_at_once() -> None:
    """``parity --help`` takes less than half a second of a processor, however busy the machine is."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert parity("--help").code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert statistics.median(seconds() for _ in range(3)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    """``parity --help`` imports neither torch nor transformers nor numpy nor the runtime."""
    command = [sys.executable, "-X", "importtime", "-m", "parity", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    heavy = {
        "torch",
        "transformers",
        "numpy",
        "jax",
        "safetensors",
        "ai_edge_litert",
        "ai_edge_quantizer",
        "litert_torch",
    }
    assert imported & heavy == set()


def test_models_lists_every_preset() -> None:
    """``parity models`` names every preset and every alias, each in one piece even in 80 columns."""
    from models import registry

    outcome = parity("models", columns=80)
    assert outcome.code == 0
    flat = re.sub(r"[^a-z0-9.-]+", " ", outcome.out).split()
    presets = list(registry.models())
    assert len(presets) >= 14
    for model in presets:
        for name in (model.name, *model.preset.aliases):
            assert name in flat, outcome.out


def test_weights_prints_folded_rows() -> None:
    """``parity weights`` prints one row for what all layers do alike, and how many layers that is."""
    outcome = parity("weights", "llama-3.2-1b")
    assert outcome.code == 0, outcome.err
    assert "model.layers.0" not in outcome.out
    (row,) = [line for line in outcome.out.splitlines() if "model.layers.{}.self_attn.q_proj" in line]
    assert "rename" in row
    assert re.search(r"\b3\b\W*$", row), row
    assert "tie" in outcome.out


def test_generate_runs_every_rung() -> None:
    """``parity generate`` answers on the original and on every default rung, side by side."""
    outcome = parity("generate", MODEL, "Hello", "--tokens", "6")
    assert outcome.code == 0, outcome.out + outcome.err
    for rung in ("original", "reauthored", "float", "dynamic_int8"):
        (row,) = [line for line in outcome.out.splitlines() if re.search(rf"\b{rung}\b", line)]
        assert "/6" in row, outcome.out


# The exported file


def signatures(path: Path) -> dict[str, Any]:
    """Names, shapes and dtypes of a file's signatures, as the runtime sees them."""
    code = """
import json, sys
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1])
def side(details):
    return {name: [list(map(int, d["shape"])), d["dtype"].__name__] for name, d in details.items()}
runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
print(json.dumps({n: [side(r.get_input_details()), side(r.get_output_details())] for n, r in runners.items()}))
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout.splitlines()[-1])


#: The tiny preset: three layers of six heads of sixteen channels.
CACHE = {f"kv_cache_{kind}_{layer}": [[1, 64, 6, 16], "float32"] for layer in range(3) for kind in "kv"}


def inputs(length: int) -> dict[str, Any]:
    return {"tokens": [[1, length], "int32"], "input_pos": [[length], "int32"], **CACHE}


def test_converted_file_keeps_the_contract_of_signatures(tmp_path) -> None:
    """``parity convert`` names the file by what it holds; it has the contract's signatures, tensors and shapes."""
    folder = tmp_path / "out"
    arguments = ("--prefill", 8, "--kv-cache", 64, "--recipe", "dynamic_int8")
    outcome = parity("convert", MODEL, "-o", folder, *arguments)
    assert outcome.code == 0, outcome.err
    (file,) = folder.iterdir()
    assert file.name == f"{MODEL}_q8_ekv64.tflite"
    assert str(file) in outcome.out
    assert signatures(file) == {
        "prefill_8": [inputs(8), CACHE],
        "decode": [inputs(1), {"logits": [[1, 1, 320], "float32"], **CACHE}],
    }
    assert file.stat().st_size < 4 * 134_000 * 8, "larger than its weights in float32; nothing was quantized"


def test_verification_keeps_logits_on_prefill(tmp_path) -> None:
    """With ``--verification`` prefill gives logits at every position; the file has the name it was told to have."""
    file = tmp_path / "named.tflite"
    outcome = parity("convert", MODEL, "-o", file, "--prefill", 8, "--kv-cache", 64, "--verification")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["named.tflite"]
    found = signatures(file)
    assert found["prefill_8"] == [inputs(8), {"logits": [[1, 8, 320], "float32"], **CACHE}]
    assert set(found) == {"prefill_8", "decode"}


# Goldens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder that tests may change."""
    from models import registry
    from parity.weights import write_checkpoint

    folder = tmp_path_factory.mktemp("golden") / "mine"
    folder.mkdir()
    write_checkpoint(folder, registry.get(MODEL), lambda *_: None, tiny=True)
    return folder


@pytest.fixture(scope="module")
def golden_dir(checkpoint) -> Path:
    """A folder with the checkpoint's recording."""
    folder = checkpoint.parent / "recordings"
    outcome = parity("golden", "record", "llama", "--weights", checkpoint, "--golden-dir", folder)
    assert outcome.code == 0, outcome.err
    assert [path.name for path in sorted((folder / "llama" / "mine").iterdir())] == ["short.json", "short.safetensors"]
    return folder


def test_golden_gates_without_the_original(checkpoint, golden_dir, tmp_path) -> None:
    """``check --golden`` passes against the recording, and the original is not run."""
    path = tmp_path / "golden.json"
    arguments = ("--golden", "--golden-dir", golden_dir, "--rung", "reauthored", "--json", path)
    outcome = parity("check", "llama", "--weights", checkpoint, *arguments)
    assert outcome.code == 0, outcome.out + outcome.err
    document = json.loads(path.read_text())
    # The exact port, held against the recording, stands in for the original.
    assert [(edge["reference"], edge["candidate"], edge["question"]) for edge in document["edges"]] == [
        ("golden", "reauthored64", "port"),
        ("reauthored64", "reauthored", "rounding"),
    ]
    assert {edge["verdict"] for edge in document["edges"]} == {"PASS"}
    assert "original" not in {rung["name"] for rung in document["rungs"]}


def test_golden_is_not_overwritten_unasked(checkpoint, golden_dir) -> None:
    """Recording what is recorded is refused with exit code 2, and the recording stays as it was."""
    files = sorted(golden_dir.rglob("short.*"))
    before = [path.read_bytes() for path in files]
    outcome = parity("golden", "record", "llama", "--weights", checkpoint, "--golden-dir", golden_dir)
    assert outcome.code == 2
    assert "--overwrite" in outcome.err
    assert [path.read_bytes() for path in files] == before


def test_missing_recording_is_an_error(golden_dir, tmp_path) -> None:
    """``check --golden`` without a recording: ERROR, exit code 3, and the command that makes one."""
    path = tmp_path / "r.json"
    arguments = ("--golden", "--golden-dir", golden_dir, "--rung", "reauthored", "--json", path)
    outcome = parity("check", "qwen2.5-0.5b", *arguments)
    assert outcome.code == 3, outcome.out + outcome.err
    edges = json.loads(path.read_text())["edges"]
    assert [edge["candidate"] for edge in edges] == ["reauthored64", "reauthored"]
    for edge in edges:
        assert edge["verdict"] == "ERROR"
        assert "parity golden record qwen2.5-0.5b" in edge["cause"]


def test_changed_weights_make_a_recording_stale(checkpoint, golden_dir, tmp_path) -> None:
    """One changed weight: ERROR, exit code 3, "stale", what changed, and a command that really renews it."""
    from safetensors.numpy import load_file, save_file

    file = checkpoint / "model.safetensors"
    before = file.read_bytes()
    stored = load_file(file)
    stored["model.norm.weight"][0] += 2**-10
    save_file(stored, file, metadata={"format": "pt"})
    path = tmp_path / "r.json"
    check = ("check", "llama", "--weights", checkpoint, "--golden", "--golden-dir", golden_dir, "--rung", "reauthored")
    try:
        outcome = parity(*check, "--json", path)
    finally:
        file.write_bytes(before)
    assert outcome.code == 3, outcome.out + outcome.err
    edge, *_ = json.loads(path.read_text())["edges"]
    assert "stale: weights changed" in edge["cause"]
    (renewal,) = re.findall("`(parity golden record .*)`", edge["cause"])
    assert "--overwrite" in renewal
    assert str(golden_dir) in renewal, "the command would renew the recording in another folder"


def test_unused_recording_is_reported_and_pruned(golden_dir, tmp_path) -> None:
    """A recording no check reads fails ``golden check``, is named, and ``golden prune --yes`` removes it alone."""
    folder = tmp_path / "recordings"
    for name in ("short.json", "short.safetensors"):
        for model in ("llama", "model-of-yesterday"):
            path = folder / model / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((golden_dir / "llama" / "mine" / name).read_bytes())
    outcome = parity("golden", "check", MODEL, "--golden-dir", folder)
    assert outcome.code == 3
    assert "model-of-yesterday/mine/short" in outcome.err
    assert " llama/mine/short" not in outcome.err
    assert "parity golden prune --yes" in outcome.err
    parity("golden", "prune", "--golden-dir", folder)
    assert len(list(folder.rglob("short.*"))) == 4
    assert parity("golden", "prune", "--yes", "--golden-dir", folder).code == 0
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert kept == {"llama/mine/short.json", "llama/mine/short.safetensors"}


def test_recording_of_a_prompt_file_is_in_use(checkpoint, tmp_path) -> None:
    """A recording made from a .jsonl file that ``check --golden`` reads is not called unused, and is not pruned."""
    prompts = tmp_path / "mine.jsonl"
    line = {"id": "a", "text": "The lighthouse", "continuation": " keeper wrote in his logbook every evening by lamp."}
    prompts.write_text(json.dumps(line) + "\n")
    folder = tmp_path / "recordings"
    shared = ("llama", "--weights", checkpoint, "--prompts", prompts, "--golden-dir", folder)
    assert parity("golden", "record", *shared).code == 0
    assert parity("check", *shared, "--golden", "--rung", "reauthored").code == 0
    assert parity("golden", "prune", "--yes", "--golden-dir", folder).code == 0
    assert (folder / "llama" / "mine" / "mine.safetensors").is_file()
