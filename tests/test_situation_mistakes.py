"""Mistakes that plain prompts do not show, planted one at a time in a copy of the sources: a situation shows each.

One run of all situations holds both halves of the claim: the rows of the prompt sets pass, that of the situation fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mistake:
    """``sound`` stands once in ``file``; with ``broken`` in its place ``situation`` fails and ``passing`` do not."""

    what: str
    preset: str
    file: str
    sound: str
    broken: str
    situation: str
    passing: tuple[str, ...] = ("short", "long")


DRIVER, CACHE, MASK, ROPE, DECODER = (
    "parity/runners/driver.py",
    "models/layers/kv_cache.py",
    "models/layers/mask.py",
    "models/layers/rope.py",
    "models/authoring/decoder.py",
)

MISTAKES = (
    Mistake(
        "a later chunk starts one position off",
        "llama-3.2-1b",
        DRIVER,
        "positions = np.arange(self.position, end, dtype=np.int32)",
        "positions = np.arange(self.position - bool(chunk.start), end - bool(chunk.start), dtype=np.int32)",
        "signatures",
        ("short", "long", "repeated", "special"),
    ),
    Mistake(
        "answers are read from the end of a padded call",
        "llama-3.2-1b",
        DRIVER,
        'made.pop("logits")[self.prompt.row, : chunk.count]',
        'made.pop("logits")[self.prompt.row, -chunk.count :]',
        "padding",
        ("short", "long", "beyond", "repeated", "special"),
    ),
    Mistake(
        "positions end with the original context",
        "llama-3.2-1b",
        ROPE,
        "positions = positions.to(frequencies.dtype)",
        "positions = positions.to(frequencies.dtype).clamp(max=63)",
        "beyond",
        ("short", "signatures", "edges", "turns"),
    ),
    Mistake(
        "a second turn forgets the answer to the first",
        "llama-3.2-1b",
        DRIVER,
        "    def extend(self, tokens: Sequence[int]) -> Logits:\n",
        "    def extend(self, tokens: Sequence[int]) -> Logits:\n        self.position = len(self.prompt.prompt)\n",
        "turns",
        ("short", "long", "signatures", "edges", "batch"),
    ),
    Mistake(
        "the last slot is never written",
        "llama-3.2-1b",
        CACHE,
        "updated[:, start : start + count] = new",
        "updated[:, (at := min(start, cache.shape[1] - 1 - count)) : at + count] = new",
        "full",
        ("short", "long", "signatures", "edges", "padding", "beyond", "turns", "batch", "repeated", "special"),
    ),
    Mistake(
        "every row of a batch has the keys of the first",
        "llama-3.2-1b",
        CACHE,
        "updated[:, start : start + count] = new",
        "updated[:, start : start + count] = new[:1]",
        "batch",
        ("short", "long", "signatures", "edges", "padding", "beyond", "turns", "repeated", "special", "full"),
    ),
    Mistake(
        "unknown tokens are nothing",
        "llama-3.2-1b",
        DECODER,
        "        hidden = self.tokens(tokens)\n",
        "        hidden = self.tokens(tokens) * (tokens != 0)[..., None]\n",
        "special",
        ("short", "long", "signatures", "edges", "beyond", "turns", "repeated"),
    ),
    Mistake(
        "a window is one short in every call of prefill but the first",
        "gemma-2-2b",
        MASK,
        "slots[None, :] > positions[:, None] - window",
        "slots[None, :] > positions[:, None] - window + ((positions[0] > 0) & (len(positions) > 1))",
        "window",
        ("short", "long", "repeated", "special"),
    ),
)


def parity(tree: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line with the sources of ``tree`` in front of the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "parity", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tree,
        env=environment,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Callable[[str], Path]:
    """Records all situations of a preset, once, with sound sources: what a mistake of ours cannot change."""
    store = tmp_path_factory.mktemp("golden")

    def record(preset: str) -> Path:
        if not (store / preset).is_dir():
            done = parity(ROOT, "golden", "record", preset, "--prompts", "all", "--golden-dir", store)
            assert done.returncode == 0, done.stderr
        return store

    return record


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, which is what a fresh process imports there."""
    for package in ("models", "parity"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tree"


def check(tree: Path, preset: str, store: Path) -> tuple[int, dict[str, Any]]:
    """The exit code and the re-authored edge of all situations with the sources of ``tree``."""
    report = tree.parent / "report.json"
    golden = ("--golden", "--golden-dir", store)
    done = parity(tree, "check", preset, "--prompts", "all", "--rung", "reauthored", "--json", report, *golden)
    assert report.is_file(), done.stderr
    return done.returncode, json.loads(report.read_text())["edges"][0]


@pytest.mark.parametrize("preset", dict.fromkeys(mistake.preset for mistake in MISTAKES))
def test_sound_sources_pass_in_every_situation(tree, preset, recorded) -> None:
    """Without a mistake every row passes, which is what makes a failing one mean something."""
    code, edge = check(tree, preset, recorded(preset))
    assert code == 0, edge["cause"]
    assert {figures["verdict"] for figures in edge["situations"].values()} == {"PASS"}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_situation_shows_what_plain_prompts_do_not(tree, mistake, recorded) -> None:
    """Exit code 1, the situation's row FAIL and named in the cause; the rows that cannot show the mistake pass."""
    path = tree / mistake.file
    source = path.read_text()
    assert source.count(mistake.sound) == 1, "the line to break has changed; break it as it is now"
    path.write_text(source.replace(mistake.sound, mistake.broken))
    code, edge = check(tree, mistake.preset, recorded(mistake.preset))
    assert code == 1, edge["cause"]
    assert edge["verdict"] == "FAIL"
    failed = {name for name, figures in edge["situations"].items() if figures["verdict"] == "FAIL"}
    assert mistake.situation in failed
    assert f"in {mistake.situation}: floor_ratio" in edge["cause"]
    assert edge["situations"][mistake.situation]["floor_ratio"] > 10 * edge["limits"]["floor_ratio"]
    assert not failed & set(mistake.passing)
