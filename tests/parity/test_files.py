"""Files and folders are whole or not there, and what killed processes left over is cleared away by the next ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parity import files
from parity.errors import ParityError, UsageError
from parity.files import scratch_folder, whole_file, whole_folder, write_whole

HOLD = """
import sys, time
from pathlib import Path
from parity import files
with getattr(files, sys.argv[1])(*(Path(a) if "/" in a else a for a in sys.argv[2:])) as made:
    if made.is_dir():
        made = made / "inside"
    made.write_text("half")
    print("holding", flush=True)
    time.sleep(600)
"""


def holding(*arguments: object) -> subprocess.Popen[str]:
    """Another process in the middle of a block."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_whole_file_replaces_an_older_one(tmp_path: Path) -> None:
    """The file is there under its name while it is written, and in its place afterwards; nothing else is left."""
    path = tmp_path / "deep" / "run.json"
    for text in ("first", "second"):
        with whole_file(path) as temporary:
            temporary.write_text(text)
            assert temporary.name == path.name
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    """The older file stays as it was; a folder does not come into being."""
    path = tmp_path / "run.json"
    path.write_text("older")

    def fail(half: Path) -> None:
        half.write_text("half")
        raise error

    with pytest.raises(error), whole_file(path) as temporary:
        fail(temporary)
    with pytest.raises(error), whole_folder(tmp_path / "folder") as folder:
        fail(folder / "file")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """As UTF-8, wherever it runs; a text that cannot be encoded to its end leaves the older one."""
    path = tmp_path / "page.md"
    write_whole(path, "80 \N{MULTIPLICATION SIGN}\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "x" * 100_000 + "\ud800")
    assert path.read_bytes() == b"80 \xc3\x97\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    """Nobody is told that a file is there which is not."""
    with pytest.raises(ParityError, match=r"run\.json failed"), whole_file(tmp_path / "run.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_first_whole_folder_is_kept(tmp_path: Path) -> None:
    """Two processes that make the same folder: the one that is done first wins, the other goes on with it."""
    path = tmp_path / "weights"
    with whole_folder(path) as slow:
        with whole_folder(path) as fast:
            (fast / "file").write_text("fast")
        (slow / "file").write_text("slow")
    assert [(file.name, file.read_text()) for file in path.iterdir()] == [("file", "fast")]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path, kind: str) -> None:
    """Half a file of a killed process is not in place, and is cleared away by whoever writes the same next."""
    path = tmp_path / "made"
    end(holding(kind, path))
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with whole_file(tmp_path / "another") as temporary:
        temporary.write_text("another's leftovers are not its business")
    assert len(list(tmp_path.iterdir())) == 2
    with (whole_folder if kind == "whole_folder" else whole_file)(path) as temporary:
        (temporary if kind == "whole_file" else temporary / "inside").write_text("whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["another", "made"]


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_what_a_living_process_writes_is_left_alone(tmp_path: Path, kind: str) -> None:
    """Both can be in the middle of the same file."""
    path = tmp_path / "made"
    other = holding(kind, path)
    with whole_file(path) as temporary:
        temporary.write_text("ours")
        assert len(list(tmp_path.glob(".made.*.part"))) == 2
    assert path.read_text() == "ours"
    assert len(list(tmp_path.glob(".made.*.part/*"))) == 1
    end(other)


def test_scratch_of_the_dead_is_cleared_and_of_the_living_kept(tmp_path: Path) -> None:
    """As many as there are; nothing that only looks like one, or belongs to another name, is touched."""
    living = holding("scratch_folder", tmp_path, "parity")
    for _ in range(2):
        end(holding("scratch_folder", tmp_path, "other"))
        end(holding("scratch_folder", tmp_path, "parity"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    (tmp_path / ".parity.link.part").symlink_to(outside)
    (tmp_path / ".parity.file.part").write_text("not ours")
    with scratch_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []
        assert len(list(tmp_path.glob(".parity.????????.part"))) == 2
    end(living)
    kept = {".parity.link.part", ".parity.file.part", "outside"}
    assert kept < {path.name for path in tmp_path.iterdir()}
    assert (outside / "file").read_text() == "not ours"
    assert len(list(tmp_path.glob(".other.*.part"))) == 1


def test_scratch_of_the_same_process_is_kept(tmp_path: Path) -> None:
    """Whoever works beside it, or starts within it, clears nothing that is still in use."""
    with scratch_folder(tmp_path) as outer, scratch_folder(tmp_path) as inner:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_come_and_go, tmp_path).result()
        assert outer.is_dir()
        assert inner.is_dir()
    assert list(tmp_path.iterdir()) == []


def _come_and_go(place: Path) -> None:
    with scratch_folder(place):
        pass


def test_strange_names_are_taken_as_they_are(tmp_path: Path) -> None:
    """A name with pattern characters clears its own leftovers, not those that it would match."""
    end(holding("whole_file", tmp_path / "abc.json"))
    with whole_file(tmp_path / "[a]*.json") as temporary:
        temporary.write_text("x")
    assert len(list(tmp_path.glob(".abc.json.*.part"))) == 1


def test_a_place_below_a_file_is_wrong_use(tmp_path: Path) -> None:
    """It is named, with the remedy."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another place"), scratch_folder(tmp_path / "file"):
        pass


def test_a_settled_file_is_read_once_and_again_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has just been changed is always read, for its times tell nothing yet."""
    path, read = tmp_path / "weights", []
    real = files.content_sha256
    monkeypatch.setattr(files, "content_sha256", lambda each: read.append(each) or real(each))
    path.write_text("one")
    assert files.unread_sha256(path) == files.unread_sha256(path) == real(path)
    assert len(read) == 2, "it has just been written"
    monkeypatch.setattr(files, "_SETTLED", -1)
    assert files.unread_sha256(path) == files.unread_sha256(path) == real(path)
    assert len(read) == 3
    path.write_text("two")
    os.utime(path, ns=(0, 0))
    assert files.unread_sha256(path) == real(path)
    assert len(read) == 4
