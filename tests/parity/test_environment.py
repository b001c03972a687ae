"""What a run was made with, where git is, is not, or is of another project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from parity.environment import describe, revision


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.invalid", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of one file."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("as committed")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    return tmp_path


def test_the_revision_of_a_checkout(checkout: Path) -> None:
    """With a mark where a file is changed that git knows; others do not count."""
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "new").write_text("not added")
    assert revision(checkout) == head
    (checkout / "file").write_text("changed")
    assert revision(checkout) == f"{head}+"


def test_what_is_no_checkout_has_no_revision(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nor has what was installed somewhere below one, nor a checkout without a commit."""
    installed = checkout / "venv" / "site-packages"
    installed.mkdir(parents=True)
    assert revision(installed) is None
    assert revision(tmp_path_factory.mktemp("bare")) is None
    assert revision(checkout / "nowhere") is None
    empty = tmp_path_factory.mktemp("empty")
    git(empty, "init", "--quiet")
    assert revision(empty) is None


def test_without_git_there_is_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing goes wrong."""
    monkeypatch.setenv("PATH", str(checkout))
    assert revision(checkout) is None
    assert describe()["revision"] is None


def test_another_repository_in_the_environment_is_not_meant(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook runs with the variables of its own repository."""
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "--quiet")
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert revision(checkout) == head
