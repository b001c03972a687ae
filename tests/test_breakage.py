"""The harness against a copy of its sources: with a real porting bug it fails, unbroken it passes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
#: One line of the rotary embedding, and the same with a sign swapped.
SOUND, BROKEN = "first * cos - second * sin", "first * cos + second * sin"


def run(tree: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with the sources of ``tree`` in front of the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tree,
        env=environment,
    )


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, which is what a fresh process imports there."""
    for package in ("models", "parity"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package, ignore=shutil.ignore_patterns("__pycache__"))
    found = run(tmp_path / "tree", "-c", "import models, parity; print(models.__file__, parity.__file__)")
    assert found.stdout.split() == [str(tmp_path / "tree" / name / "__init__.py") for name in ("models", "parity")]
    return tmp_path / "tree"


def check(tree: Path) -> tuple[int, dict[str, Any]]:
    """The exit code and the re-authored edge of a check with the sources of ``tree``."""
    report = tree.parent / "report.json"
    done = run(tree, "-m", "parity", "check", "amd-llama-135m", "--rung", "reauthored", "--json", report)
    assert "Traceback" not in done.stderr, done.stderr
    (edge,) = [edge for edge in json.loads(report.read_text())["edges"] if edge["candidate"] == "reauthored"]
    return done.returncode, edge


def test_swapped_sign_in_rope_fails(tree) -> None:
    """A swapped sign in the rotary embedding: exit code 1, the re-authored edge FAIL, far outside the limit."""
    path = tree / "models" / "layers" / "rope.py"
    source = path.read_text()
    assert source.count(SOUND) == 1, "the line to break has changed; break it as it is now"
    path.write_text(source.replace(SOUND, BROKEN))
    code, edge = check(tree)
    assert code == 1
    assert edge["verdict"] == "FAIL"
    assert edge["metrics"]["floor_ratio"] > 1000 * edge["limits"]["floor_ratio"]
    assert "floor_ratio" in edge["cause"]


def test_unbroken_copy_passes(tree) -> None:
    """The copy itself changes nothing: exit code 0, the re-authored edge PASS."""
    code, edge = check(tree)
    assert code == 0
    assert edge["verdict"] == "PASS"
