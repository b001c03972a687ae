"""Bad input through the real command line, in a fresh process: one line with the remedy, nothing left over."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from PIL import Image
from processes import Process, jobs, session, until

MODEL = "amd-llama-135m"
QUERY = "model.layers.1.self_attn.q_proj.weight"
#: What the progress reporter prints after a long step; everything else on standard error is a message.
STEP = re.compile(r".+ {2}\d+\.\d s")
#: A message that only says what is wrong leaves the reader alone; every remedy follows a semicolon or asks a question.
REMEDY = re.compile(r";|did you mean|Try ")


@dataclass(frozen=True)
class Outcome:
    """What one run of the command line left behind; ``scratch`` is what it forgot in the temporary folder."""

    code: int
    out: str
    err: str
    document: dict[str, Any] | None = None
    scratch: tuple[str, ...] = ()

    @property
    def messages(self) -> list[str]:
        """Standard error without the progress lines."""
        return [line for line in self.err.splitlines() if line.strip() and not STEP.fullmatch(line)]

    @property
    def causes(self) -> dict[str, str]:
        """The cause of every edge that is an ERROR, by candidate."""
        edges = (self.document or {}).get("edges", [])
        return {edge["candidate"]: str(edge["cause"]) for edge in edges if edge["verdict"] == "ERROR"}

    def assert_one_line(self, code: int, *words: str) -> None:
        """It ended with ``code`` and one prefixed line that holds ``words`` and a remedy."""
        assert "Traceback" not in self.out + self.err, self.err
        assert self.code == code, (self.code, self.err)
        assert len(self.messages) == 1, self.err
        assert self.messages[0].startswith("parity: "), self.err
        for word in words:
            assert word in self.messages[0], (word, self.messages[0])
        assert REMEDY.search(self.messages[0]), self.messages[0]

    def assert_error_edges(self, candidates: Sequence[str], *words: str) -> None:
        """It ended with 3, and the report has these edges as ERROR with causes that hold ``words`` and a remedy."""
        assert "Traceback" not in self.out + self.err, self.err
        assert self.code == 3, (self.code, self.out, self.err)
        assert self.messages == [], self.err
        assert self.document is not None, "the JSON was not written"
        assert self.document["verdict"] == "ERROR"
        assert set(candidates) <= set(self.causes), self.document["edges"]
        for candidate in candidates:
            for word in words:
                assert word in self.causes[candidate], (word, self.causes)
            assert REMEDY.search(self.causes[candidate]), self.causes


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "parity", *map(str, arguments)]


def environment(scratch: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch), "COLUMNS": "200"}


def collect(code: int, out: str, err: str, scratch: Path, report: Path | None) -> Outcome:
    document = json.loads(report.read_text()) if report and report.is_file() else None
    return Outcome(code, out, err, document, tuple(sorted(path.name for path in scratch.iterdir())))


#: Runs the command behind a number of bytes as if the disk were full for files of more.
LIMITED = (
    sys.executable,
    "-c",
    (
        "import os, resource, sys; limit = int(sys.argv[1]); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); os.execv(sys.argv[2], sys.argv[2:])"
    ),
)


def parity(scratch: Path, *arguments: object, report: Path | None = None, file_limit: int | None = None) -> Outcome:
    """Run the command line to its end; ``file_limit`` is the size at which the disk is full."""
    scratch.mkdir(parents=True, exist_ok=True)
    if report:
        arguments = (*arguments, "--json", report)
    done = subprocess.run(
        [*((*LIMITED, str(file_limit)) if file_limit else ()), *command(*arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(scratch),
    )
    return collect(done.returncode, done.stdout, done.stderr, scratch, report)


# The checkpoints and prompt sets


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A sound tiny checkpoint of its own, to be copied and damaged."""
    from models import registry
    from parity.weights import write_checkpoint

    folder = tmp_path_factory.mktemp("w") / "sound"
    folder.mkdir()
    write_checkpoint(folder, registry.get(MODEL), lambda *_: None, tiny=True)
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture(scope="module")
def damaged(base, tmp_path_factory) -> Callable[..., Path]:
    """Copies the sound checkpoint and applies a damage to the copy."""

    def make(name: str, damage: Callable[[Path], None]) -> Path:
        folder = tmp_path_factory.mktemp("d") / name
        shutil.copytree(base, folder)
        damage(folder)
        return folder

    return make


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A damage to the tensors of the only shard."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        stored = load_file(folder / "model.safetensors")
        change(stored)
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def config(**values: object) -> Callable[[Path], None]:
    """A damage to ``config.json``."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def index(*, file: str, keep: bool = True) -> Callable[[Path], None]:
    """An index beside the weights that sends every tensor to ``file``."""

    def damage(folder: Path) -> None:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", framework="np") as stored:
            names = list(stored.keys())
        text = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file)})
        (folder / "model.safetensors.index.json").write_text(text)
        if not keep:
            (folder / "model.safetensors").unlink()

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)


def add(stored: dict[str, Any]) -> None:
    stored["model.layers.1.self_attn.q_norm.weight"] = stored["model.norm.weight"].clone()


def cut(stored: dict[str, Any]) -> None:
    stored[QUERY] = stored[QUERY][:-1].contiguous()


def as_integers(stored: dict[str, Any]) -> None:
    import torch

    stored[QUERY] = (stored[QUERY] * 10).to(torch.int8)


def poke(value: float) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        stored[QUERY][3, 5] = value

    return change


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def small_vocabulary(folder: Path) -> None:
    def change(stored: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            stored[name] = stored[name][:100].contiguous()

    tensors(change)(folder)
    config(vocab_size=100)(folder)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def nested(name: str) -> Callable[[Path], None]:
    """JSON nested deeper than any parser goes."""

    def damage(folder: Path) -> None:
        (folder / name).write_text('{"model_type": "llama", "weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}")

    return damage


#: Every damage, and what the cause must name.
DAMAGES: Mapping[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (truncate, ("model.safetensors", "fetch")),
    "corrupt": (garble, ("model.safetensors", "fetch")),
    "missing_tensor": (tensors(lambda stored: stored.pop(QUERY)), (QUERY,)),
    "extra_tensor": (tensors(add), ("model.layers.1.self_attn.q_norm.weight",)),
    "wrong_shape": (tensors(cut), (QUERY, "config.json")),
    "int8": (tensors(as_integers), (QUERY, "int8")),
    "nan": (tensors(poke(float("nan"))), (QUERY, "NaN")),
    "infinity": (tensors(poke(float("inf"))), (QUERY, "infinity")),
    "no_tokenizer": (without_tokenizer, ("no tokenizer",)),
    "foreign_tokenizer": (small_vocabulary, ("the model has 100 rows",)),
    "pickle": (pickled, ("only safetensors", "pickles")),
    "parent_index": (index(file="../model.safetensors"), ("'../model.safetensors'", "outside the folder")),
    "absolute_index": (index(file="/etc/passwd"), ("'/etc/passwd'", "outside the folder")),
    "missing_shard": (
        index(file="model-00001-of-00002.safetensors", keep=False),
        ("model-00001-of-00002.safetensors",),
    ),
    "unknown_key": (config(logit_scale=2.0), ("logit_scale", "may change the maths")),
    "wrong_type": (config(hidden_size="96"), ("hidden_size", "expected int")),
    "absurd_depth": (config(num_hidden_layers=10**15), ("num_hidden_layers",)),
    "nested_config": (nested("config.json"), ("config.json",)),
    "nested_index": (nested("model.safetensors.index.json"), ("model.safetensors.index.json",)),
}

GOOD_LINE = {
    "id": "one",
    "text": "The lighthouse",
    "continuation": " keeper wrote in his logbook every evening by lamp.",
}
#: Every bad prompt set, and what the cause must name.
PROMPTS: Mapping[str, tuple[bytes, tuple[str, ...]]] = {
    "bad_json": (b'{"id": "one", "text"\n', (":1 is no",)),
    "no_text": (b'{"id": "one"}\n', (":1 is no", "text")),
    "same_id": (json.dumps(GOOD_LINE).encode() + b"\n" + json.dumps(GOOD_LINE).encode(), ("same id",)),
    "short": (json.dumps({**GOOD_LINE, "continuation": " no"}).encode(), ("continuation of one", "16; lengthen it")),
    "not_utf8": (json.dumps(GOOD_LINE).encode() + b"\n\xff\xfe\n", ("not_utf8.jsonl", "UTF-8")),
    "nothing": (b"", ("holds no prompts",)),
    "nested": (b"[" * 100_000 + b"]" * 100_000, ("nested.jsonl:1 is no",)),
}


#: Every bad prompt with a picture, what else is asked for, and what the cause must name.
PICTURES: Mapping[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "picture_corrupt": ({"images": ["corrupt.png"]}, (), ("corrupt.png cannot be read as a picture",)),
    "picture_colourless": ({"images": ["deep.png"]}, (), ("deep.png is of mode I;16",)),
    "picture_absent": ({"images": ["gone.png"]}, (), ("no picture is called 'gone.png'",)),
    "picture_no_marker": ({"text": "what is it"}, (), ("prompt one has 1 images and 0 times <image>",)),
    "picture_no_image": ({"images": []}, (), ("prompt one has 0 images and 1 times <image>",)),
    "picture_no_list": ({"images": "shapes"}, (), (":1 is no prompt", "images is a list")),
    "picture_short_prefill": ({}, ("--prefill", "8"), ("prompt one has 1", "the longest --prefill takes 8")),
}


@pytest.fixture(scope="module")
def checks(damaged, base, tmp_path_factory) -> dict[str, Outcome]:
    """Every check that ends in a report, two at a time."""
    place = tmp_path_factory.mktemp("c")
    runs: dict[str, tuple[object, ...]] = {
        name: ("llama", "--weights", damaged(name, damage), "--rung", "reauthored")
        for name, (damage, _) in DAMAGES.items()
    }
    for name, (content, _) in PROMPTS.items():
        (place / f"{name}.jsonl").write_bytes(content)
        runs[name] = ("llama", "--weights", base, "--rung", "reauthored", "--prompts", place / f"{name}.jsonl")
    line = json.dumps({**GOOD_LINE, "text": "The\u2028lighthouse\x85"}, ensure_ascii=False)
    (place / "separators.jsonl").write_text(line + "\n", encoding="utf-8")
    runs["separators"] = ("llama", "--weights", base, "--rung", "reauthored", "--prompts", place / "separators.jsonl")
    (place / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(place / "deep.png")
    for name, (changes, extra, _) in PICTURES.items():
        line = json.dumps({**GOOD_LINE, "text": "<image>what is it\n", "images": ["shapes"], **changes})
        (place / f"{name}.jsonl").write_text(line + "\n")
        runs[name] = ("paligemma", "--rung", "reauthored", "--prompts", place / f"{name}.jsonl", *extra)
    runs["small_cache"] = ("llama", "--weights", base, "--rung", "reauthored", "--kv-cache", "32")
    runs["second_is_wrong"] = ("llama", "qwen2", "--weights", base, "--rung", "reauthored")

    def run(name: str) -> Outcome:
        return parity(place / f"s-{name}", "check", *runs[name], report=place / f"{name}.json")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(runs, pool.map(run, runs), strict=True))


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_is_an_error_that_names_it(checks, name) -> None:
    """A damaged checkpoint gives ERROR, exit code 3, a cause naming what is damaged, and the JSON file."""
    checks[name].assert_error_edges(["reauthored"], *DAMAGES[name][1])
    assert checks[name].scratch == ()


@pytest.mark.parametrize("name", PROMPTS)
def test_bad_prompt_set_is_an_error_that_names_it(checks, name) -> None:
    """A prompt set that cannot be used gives ERROR, exit code 3, a cause naming line or id, and the JSON file."""
    checks[name].assert_error_edges(["reauthored"], *PROMPTS[name][1])
    assert checks[name].scratch == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("clip.wav is no file", "vowels")),
        (b"RIFF....WAVEnothing", ("clip.wav is damaged",)),
        (b"RIFF\x64\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data\0\1\0\0....", ("clip.wav",)),
    ],
    ids=["absent", "damaged", "truncated"],
)
def test_bad_audio_is_an_error_that_names_it(tmp_path, content, words) -> None:
    """What lies beside the prompt set and is no recording gives ERROR, exit code 3, and its name."""
    line = {"id": "one", "text": "", "continuation": GOOD_LINE["continuation"], "audio": "clip.wav"}
    (tmp_path / "set.jsonl").write_text(json.dumps(line))
    if content is not None:
        (tmp_path / "clip.wav").write_bytes(content)
    arguments = ("check", "moonshine-tiny", "--rung", "reauthored", "--prompts", tmp_path / "set.jsonl")
    outcome = parity(tmp_path / "s", *arguments, report=tmp_path / "r.json")
    outcome.assert_error_edges(["reauthored"], *words)
    assert outcome.scratch == ()


@pytest.mark.parametrize("name", PICTURES)
def test_bad_picture_is_an_error_that_names_it(checks, name) -> None:
    """A prompt whose picture cannot be used gives ERROR, exit code 3, a cause naming it, and the JSON file."""
    checks[name].assert_error_edges(["reauthored"], *PICTURES[name][2])
    assert checks[name].scratch == ()


def test_only_line_feeds_end_a_prompt(checks) -> None:
    """JSON strings may hold the Unicode line separators as they are; they do not end a line of the set."""
    assert checks["separators"].code == 0, (checks["separators"].out, checks["separators"].err)
    assert checks["separators"].document["prompt_set"]["prompts"] == 1


def test_cache_too_small_for_the_prompts_is_an_error(checks) -> None:
    """``--kv-cache`` below what the longest prompt needs gives ERROR, and says what to raise."""
    checks["small_cache"].assert_error_edges(["reauthored"], "--kv-cache gives 32", "raise it")


def test_models_that_were_not_run_never_leave_a_passing_file(checks) -> None:
    """Two models of which the second cannot be run: exit code 2, and no file that says PASS for both."""
    outcome = checks["second_is_wrong"]
    outcome.assert_one_line(2, "model_type", "qwen2")
    assert outcome.document is None or outcome.document["verdict"] == "ERROR", outcome.document["verdict"]


# Wrong use


USAGE: Mapping[str, tuple[Sequence[object], tuple[str, ...]]] = {
    "model": (("check", "amd-llama-136m"), ("amd-llama-136m", "did you mean amd-llama-135m")),
    "far_model": (("check", "zzzz"), ("zzzz", "parity models")),
    "recipe": (("check", MODEL, "--recipe", "dynamic_int9"), ("dynamic_int9", "dynamic_int8")),
    "recipe_file": (("check", MODEL, "--recipe", "absent.json"), ("absent.json",)),
    "rung": (("check", MODEL, "--rung", "reautored"), ("reautored", "reauthored")),
    "original_alone": (("check", MODEL, "--rung", "original"), ("--rung",)),
    "prompts": (("check", MODEL, "--prompts", "absent"), ("absent", "short")),
    "kv_cache": (("check", MODEL, "--kv-cache", "many"), ("--kv-cache",)),
    "prefill": (("check", MODEL, "--prefill", "0"), ("--prefill",)),
    "prefill_beyond_cache": (
        ("convert", MODEL, "-o", "{tmp}", "--prefill", "64", "--kv-cache", "32"),
        ("--prefill 64", "--kv-cache"),
    ),
    "prefill_twice": (("convert", MODEL, "-o", "{tmp}", "--prefill", "8", "--prefill", "8"), ("--prefill",)),
    "cache_beyond_context": (("convert", MODEL, "-o", "{tmp}", "--kv-cache", "9999"), ("--kv-cache 9999", "2048")),
    "audio_too_short": (
        ("convert", "moonshine-tiny", "-o", "{tmp}", "--audio-seconds", "0.05"),
        ("--audio-seconds 0.05", "0.056"),
    ),
    "audio_for_nobody": (("convert", MODEL, "-o", "{tmp}", "--audio-seconds", "5"), ("--audio-seconds",)),
    "option": (("check", MODEL, "--jason", "x"), ("--jason",)),
    "command": (("chek", MODEL), ("chek", "check")),
    "no_model": (("check",), ("MODEL",)),
    "no_output": (("convert", MODEL), ("--output",)),
    "weights_absent": (("check", MODEL, "--weights", "{tmp}/absent"), ("absent is not a folder",)),
    "weights_file": (("check", MODEL, "--weights", "{tmp}/file"), ("file is not a folder",)),
    "gguf_absent": (("check", MODEL, "--weights", "{tmp}/absent.gguf"), ("absent.gguf is not there",)),
    "no_sample": (("check", MODEL, "--weights", "sample"), ("has no sample", "smollm2-135m")),
    "no_config": (("check", MODEL, "--weights", "{tmp}"), ("no config.json",)),
    "model_type": (("check", "llama", "--weights", "{tmp}/bert"), ("'bert'", "'llama'")),
    "family": (("check", "qwen2", "--weights", "{tmp}/llama"), ("'llama'", "'qwen2'", "name the family that fits")),
    "json_folder": (("check", MODEL, "--json", "{tmp}"), ("is a folder",)),
    "json_below_file": (("check", MODEL, "--json", "{tmp}/file/r.json"), ("r.json cannot be written",)),
    "json_in_proc": (("check", MODEL, "--json", "/proc/parity/r.json"), ("r.json cannot be written",)),
    "markdown_below_file": (("check", MODEL, "--markdown", "{tmp}/file/r.md"), ("r.md cannot be written",)),
    "html_below_file": (("check", MODEL, "--html", "{tmp}/file/r.html"), ("r.html cannot be written",)),
    "output_below_file": (("convert", MODEL, "-o", "{tmp}/file/m.tflite"), ("m.tflite cannot be written",)),
    "output_in_proc": (("convert", MODEL, "-o", "/proc/parity"), ("cannot be written",)),
    "report_absent": (("report", "{tmp}/absent.json"), ("absent.json is not there",)),
    "report_garbage": (("report", "{tmp}/file"), ("is not a report",)),
    "report_of_nothing": (("report", "{tmp}/nothing.json"), ("is not a report",)),
    "report_of_null": (("report", "{tmp}/null.json"), ("is not a report",)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """What the wrong commands point at."""
    folder = tmp_path_factory.mktemp("u")
    (folder / "file").write_text("not a folder, not a report")
    (folder / "nothing.json").write_text('{"schema_version": 1, "models": [], "verdict": "PASS"}')
    (folder / "null.json").write_text('{"schema_version": 1, "models": null, "verdict": "PASS"}')
    for name in ("bert", "llama"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": name}))
    return folder


@pytest.mark.parametrize("name", USAGE)
def test_wrong_use_is_one_line(place, tmp_path, name) -> None:
    """Wrong use ends with exit code 2 and one line naming thing and remedy, before any file is made."""
    arguments, words = USAGE[name]
    before = sorted(place.rglob("*"))
    filled = [str(argument).replace("{tmp}", str(place)) for argument in arguments]
    outcome = parity(tmp_path / "s", *filled)
    outcome.assert_one_line(2, *words)
    assert sorted(place.rglob("*")) == before
    assert outcome.scratch == ()


@pytest.mark.parametrize("name", ["model", "prompts", "weights_absent", "family", "cache_beyond_context"])
def test_wrong_use_ends_at_once(place, tmp_path, name) -> None:
    """With the line on standard error the run is over: no process goes on and keeps a reader of its output waiting."""
    with Running(tmp_path / "s", *(str(argument).replace("{tmp}", str(place)) for argument in USAGE[name][0])) as run:
        run.process.wait(60)
        ended = time.monotonic()
        outcome = run.end()
        waited = time.monotonic() - ended
    assert outcome.code == 2
    assert waited < 1


def test_prefill_length_beyond_the_cache_is_refused_by_check(tmp_path) -> None:
    """A prefill length that ``check`` cannot test is wrong use and named, never silently left out."""
    outcome = parity(tmp_path / "s", "check", MODEL, "--rung", "reauthored", "--prefill", "16", "--prefill", "4096")
    outcome.assert_one_line(2, "--prefill 4096")


# A full disk


def test_convert_on_a_full_disk_leaves_nothing(tmp_path, base) -> None:
    """A disk that fills up during ``convert``: exit code 3, one line that says so, an empty folder."""
    folder = tmp_path / "out"
    arguments = ("convert", "llama", "--weights", base, "-o", folder / "m.tflite", "--prefill", "8", "--kv-cache", "64")
    outcome = parity(tmp_path / "s", *arguments, file_limit=100_000)
    outcome.assert_one_line(3, "File too large")
    assert list(folder.iterdir()) == []
    assert outcome.scratch == ()


def test_check_on_a_full_disk_still_reports(tmp_path, base) -> None:
    """Traces that do not fit the disk are an ERROR whose cause says so, and the (small) JSON file is written."""
    arguments = ("check", "llama", "--weights", base, "--rung", "reauthored")
    outcome = parity(tmp_path / "s", *arguments, report=tmp_path / "r.json", file_limit=100_000)
    outcome.assert_error_edges(["reauthored"], "too large", "make room")
    assert outcome.scratch == ()


def test_report_on_a_full_disk_is_whole_or_absent(tmp_path, damaged) -> None:
    """A disk too full for the JSON file: exit code 3, one line, neither half a file nor its temporary name."""
    folder = tmp_path / "reports"
    arguments = ("check", "llama", "--weights", damaged("pickle", pickled), "--rung", "reauthored")
    outcome = parity(tmp_path / "s", *arguments, report=folder / "r.json", file_limit=300)
    outcome.assert_one_line(3, "r.json", "File too large", "make room")
    assert list(folder.iterdir()) == []


# Signals


class Running:
    """A run in a session of its own that can be hit by signals."""

    def __init__(self, scratch: Path, *arguments: object, report: Path | None = None) -> None:
        scratch.mkdir(parents=True)
        self.scratch = scratch
        self.report = report
        self.process = subprocess.Popen(
            command(*arguments, *(("--json", report) if report else ())),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(scratch),
            start_new_session=True,
            # A shell has what it runs in the background ignore Ctrl-C, and with it whatever these tests start.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (nothing else is forked)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for row in session(self.process.pid):
            os.kill(row.pid, signal.SIGKILL)
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()

    def wait_for_jobs(self, count: int) -> list[Process]:
        """The oldest job first, as soon as ``count`` run at once."""
        rows: list[Process] = []

        def enough() -> bool:
            rows[:] = jobs(self.process.pid)
            return len(rows) >= count

        assert until(enough, 120), f"only {len(rows)} of {count} jobs ran at once"
        return rows

    def end(self) -> Outcome:
        out, err = self.process.communicate(timeout=180)
        return collect(self.process.returncode, out, err, self.scratch, self.report)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table in /proc")


@linux
@pytest.mark.parametrize("moment", ["starting", "tokenizing", "converting"])
def test_interrupted_check_leaves_nothing(tmp_path, base, moment) -> None:
    """Ctrl-C at any moment of ``check``: exit code 3, one line, no files, and no processes five seconds later."""
    report = tmp_path / "reports" / "r.json"
    with Running(tmp_path / "s", "check", "llama", "--weights", base, report=report) as run:
        if moment == "starting":
            assert until(lambda: len(session(run.process.pid)) > 1, 60)
        else:
            run.wait_for_jobs(1 if moment == "tokenizing" else 2)
            time.sleep(0.3)
        os.killpg(run.process.pid, signal.SIGINT)
        outcome = run.end()
        left = until(lambda: not session(run.process.pid), 5) or session(run.process.pid)
    outcome.assert_one_line(3, "interrupted")
    assert left is True, left
    assert outcome.scratch == ()
    assert list(report.parent.iterdir()) == []


@linux
def test_interrupted_convert_leaves_nothing(tmp_path, base) -> None:
    """Ctrl-C in the middle of ``convert``: exit code 3, one line, an empty folder, no processes five seconds later."""
    folder = tmp_path / "out"
    arguments = ("convert", "llama", "--weights", base, "-o", folder / "m.tflite", "--prefill", "8", "--kv-cache", "64")
    with Running(tmp_path / "s", *arguments) as run:
        run.wait_for_jobs(1)
        time.sleep(0.5)
        os.killpg(run.process.pid, signal.SIGINT)
        outcome = run.end()
        left = until(lambda: not session(run.process.pid), 5) or session(run.process.pid)
    outcome.assert_one_line(3, "interrupted")
    assert left is True, left
    assert outcome.scratch == ()
    assert list(folder.iterdir()) == []


@linux
def test_killed_converter_is_an_error_of_every_file_rung(tmp_path, base) -> None:
    """The converter killed during ``check``: the re-authored rung still passes, float and recipes name SIGKILL."""
    report = tmp_path / "r.json"
    with Running(tmp_path / "s", "check", "llama", "--weights", base, report=report) as run:
        converter, _ = run.wait_for_jobs(2)  # it is started before the original, beside which it runs
        os.kill(converter.pid, signal.SIGKILL)
        outcome = run.end()
    outcome.assert_error_edges(["float", "dynamic_int8"], "SIGKILL")
    verdicts = {edge["candidate"]: edge["verdict"] for edge in outcome.document["edges"]}
    sound = dict.fromkeys(("original", "reauthored64", "reauthored"), "PASS")
    assert verdicts == {**sound, "float": "ERROR", "dynamic_int8": "ERROR"}
    assert outcome.scratch == ()


@linux
def test_killed_converter_ends_convert_with_one_line(tmp_path, base) -> None:
    """The converter killed during ``convert``: exit code 3, one line naming SIGKILL, an empty folder."""
    folder = tmp_path / "out"
    arguments = ("convert", "llama", "--weights", base, "-o", folder / "m.tflite", "--prefill", "8", "--kv-cache", "64")
    with Running(tmp_path / "s", *arguments) as run:
        (converter,) = run.wait_for_jobs(1)
        os.kill(converter.pid, signal.SIGKILL)
        outcome = run.end()
    outcome.assert_one_line(3, "SIGKILL", "memory")
    assert list(folder.iterdir()) == []
    assert outcome.scratch == ()


@linux
def test_ended_convert_leaves_nothing(tmp_path, base) -> None:
    """SIGTERM (a scheduler's way to stop a job) in the middle of ``convert`` leaves no files and no processes."""
    folder = tmp_path / "out"
    arguments = ("convert", "llama", "--weights", base, "-o", folder / "m.tflite", "--prefill", "8", "--kv-cache", "64")
    with Running(tmp_path / "s", *arguments) as run:
        run.wait_for_jobs(1)
        os.kill(run.process.pid, signal.SIGTERM)
        outcome = run.end()
        left = until(lambda: not session(run.process.pid), 5) or session(run.process.pid)
    assert outcome.code != 0
    assert left is True, left
    assert list(folder.iterdir()) == []
    assert outcome.scratch == ()
