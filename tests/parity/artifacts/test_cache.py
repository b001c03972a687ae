"""The folder of kept files: nothing that is damaged comes out, nothing that is wanted is in the way of anybody."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parity.artifacts.cache import FILE, MANIFEST, SIZE, ArtifactCache, Manifest
from parity.artifacts.identity import key_of
from parity.errors import UsageError
from parity.files import content_sha256

CONTENT = b"weights" * 100


def manifest_of(path: Path, name: str = "a") -> Manifest:
    return Manifest(
        what=f"file {name}",
        identity={"name": name},
        size=path.stat().st_size,
        sha256=content_sha256(path),
        value=["x"],
        seconds=1.5,
        peak_rss_mb=10.0,
        made=time.time(),
    )


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache", 1_000_000)


def store(cache: ArtifactCache, notes: list[str], name: str = "a", content: bytes = CONTENT, **options: Any) -> str:
    """Keep a file of this content, and give its key."""
    path = cache.folder.parent / f"made_{name}"
    path.write_bytes(content)
    manifest = manifest_of(path, name)
    cache.put(key_of(manifest.identity), path, manifest, notes.append, **options)
    return key_of(manifest.identity)


def kept(cache: ArtifactCache) -> set[str]:
    return {entry.manifest.what if entry.manifest else "damaged" for entry in cache.entries()}


def test_what_was_kept_is_found_with_all_that_is_known_of_it(cache, notes, tmp_path) -> None:
    """Its bytes, its manifest, and nothing beside it; another key finds nothing."""
    key = store(cache, notes)
    found = cache.take(key, tmp_path / "taken", notes.append)
    assert found == Manifest.read(cache.folder / key / MANIFEST, key)
    assert (found.what, found.value, found.seconds) == ("file a", ["x"], 1.5)
    assert (tmp_path / "taken").read_bytes() == CONTENT
    assert cache.take(key_of({"name": "b"}), tmp_path / "other", notes.append) is None
    assert not (tmp_path / "other").exists()
    assert [path.name for path in cache.folder.iterdir()] == [key]
    assert notes == []


def test_who_has_taken_a_file_keeps_it(cache, notes, tmp_path) -> None:
    """It is the same file, not a copy, and whoever evicts the entry takes it from nobody."""
    key = store(cache, notes)
    cache.take(key, tmp_path / "taken", notes.append)
    assert (tmp_path / "taken").samefile(cache.folder / key / FILE)
    assert len(cache.clear()) == 1
    assert (tmp_path / "taken").read_bytes() == CONTENT


def test_without_links_files_are_copied(cache, notes, tmp_path, monkeypatch) -> None:
    """A temporary folder on another disk costs a copy."""

    def elsewhere(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", elsewhere)
    key = store(cache, notes)
    assert cache.take(key, tmp_path / "taken", notes.append)
    assert (tmp_path / "taken").read_bytes() == CONTENT
    assert not (tmp_path / "taken").samefile(cache.folder / key / FILE)
    assert notes == []


def truncate(entry: Path) -> None:
    (entry / FILE).write_bytes(CONTENT[:-1])


def flip(entry: Path) -> None:
    (entry / FILE).write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])


def lengthen(entry: Path) -> None:
    (entry / FILE).write_bytes(CONTENT + b"x")


def link(entry: Path) -> None:
    (entry.parent / "elsewhere").write_bytes(CONTENT)
    (entry / FILE).unlink()
    (entry / FILE).symlink_to(entry.parent / "elsewhere")


def pipe(name: str) -> Callable[[Path], None]:
    def replaced(entry: Path) -> None:
        (entry / name).unlink()
        os.mkfifo(entry / name)

    return replaced


def folder(entry: Path) -> None:
    (entry / FILE).unlink()
    (entry / FILE).mkdir()


def whole_entry_is_a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("x")


def dangling(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.symlink_to("nowhere")


def write(text: str) -> Callable[[Path], None]:
    return lambda entry: (entry / MANIFEST).write_text(text)


def moved(entry: Path) -> None:
    """The entry of another key under this one."""
    manifest = replace(Manifest.read(entry / MANIFEST, entry.name), identity={"name": "another"})
    (entry / MANIFEST).write_text(manifest.text())


def edited(entry: Path) -> None:
    """A value that was changed, and the hash over it not."""
    text = (entry / MANIFEST).read_text()
    assert '"x"' in text
    (entry / MANIFEST).write_text(text.replace('"x"', '"y"'))


def signed(**facts: Any) -> Callable[[Path], None]:
    """A manifest with a hash that is right and facts that are not."""

    def rewrite(entry: Path) -> None:
        document = json.loads((entry / MANIFEST).read_text())["facts"] | facts
        (entry / MANIFEST).write_text(json.dumps({"sha256": key_of(document), "facts": document}))

    return rewrite


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "a bit flipped": flip,
    "longer": lengthen,
    "a link": link,
    "a pipe": pipe(FILE),
    "a folder": folder,
    "no file": lambda entry: (entry / FILE).unlink(),
    "no manifest": lambda entry: (entry / MANIFEST).unlink(),
    "manifest a pipe": pipe(MANIFEST),
    "empty": lambda entry: [path.unlink() for path in entry.iterdir()],
    "not a folder": whole_entry_is_a_file,
    "a link to nowhere": dangling,
    "manifest empty": write(""),
    "manifest a list": write("[]"),
    "manifest null": write("null"),
    "manifest half": write('{"sha256": "0", "facts": {"what"'),
    "manifest deep": write("[" * 100_000),
    "manifest not text": lambda entry: (entry / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "of another key": moved,
    "edited": edited,
    "a path in it": signed(file="../../../etc/passwd"),
    "size a text": signed(size="700"),
    "hash a list": signed(sha256=["0"]),
    "seconds a text": signed(seconds="1"),
    "seconds infinite": signed(seconds=1e999),
    "made beyond numbers": signed(made=10**400),
    "what a number": signed(what=7),
    "identity a list": signed(identity=[]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_seen_said_and_removed(cache, notes, tmp_path, damage) -> None:
    """Nothing comes out of the entry, and it can be made again."""
    key = store(cache, notes)
    damage(cache.folder / key)
    assert len(cache.entries()) == 1
    assert cache.take(key, tmp_path / "taken", notes.append) is None
    assert not (tmp_path / "taken").exists()
    assert len(notes) == 1
    assert f"{key} is damaged" in notes[0]
    assert not os.path.lexists(cache.folder / key)
    assert store(cache, notes) == key
    assert cache.take(key, tmp_path / "taken", notes.append)
    assert len(notes) == 1


def test_half_an_entry_is_none_and_goes_with_the_next(cache, notes, tmp_path) -> None:
    """What a killed process left on its way in is never found, and is cleared away."""
    cache.folder.mkdir()
    half = cache.folder / ".artifact.abcd1234.part"
    half.mkdir()
    (half / FILE).write_bytes(CONTENT[:10])
    assert cache.entries() == []
    assert cache.take(key_of({"name": "a"}), tmp_path / "taken", notes.append) is None
    key = store(cache, notes)
    assert [path.name for path in cache.folder.iterdir()] == [key]
    assert notes == []


def test_what_was_used_last_is_evicted_last(tmp_path, notes) -> None:
    """By use, not by age: the oldest stays if it is taken."""
    cache = ArtifactCache(tmp_path / "cache", 3_500)
    keys = {name: store(cache, notes, name) for name in "abc"}
    for name, used in {"a": 100, "b": 200, "c": 300}.items():
        os.utime(cache.folder / keys[name] / MANIFEST, (used, used))
    assert [entry.manifest.what for entry in cache.entries()] == ["file c", "file b", "file a"]
    assert cache.take(keys["a"], tmp_path / "taken", notes.append)
    store(cache, notes, "d")
    assert kept(cache) == {"file a", "file c", "file d"}
    assert notes == []


def test_what_the_run_uses_is_not_evicted(tmp_path, notes) -> None:
    """Rather the new file is not kept, and that is said."""
    cache = ArtifactCache(tmp_path / "cache", 3_000)
    keys = [store(cache, notes, name) for name in "ab"]
    assert kept(cache) == {"file a", "file b"}
    store(cache, notes, "c", CONTENT * 2, keep=set(keys))
    assert kept(cache) == {"file a", "file b"}
    assert len(notes) == 1
    assert notes[0].startswith("file c is not kept for the next run, 1.7e-06 GB do not fit in 3e-06")
    store(cache, notes, "c", CONTENT * 2, keep={keys[0]})
    assert "file a" in kept(cache)
    assert sum(entry.size for entry in cache.entries()) <= cache.bound


def test_a_file_larger_than_the_cache_evicts_nothing(tmp_path, notes) -> None:
    """It would be the only one, and gone with the next."""
    cache = ArtifactCache(tmp_path / "cache", 2_000)
    store(cache, notes, "a")
    store(cache, notes, "b", CONTENT * 10)
    assert kept(cache) == {"file a"}
    assert "do not fit" in notes[0]


def test_a_full_disk_is_said_and_leaves_nothing(cache, notes, tmp_path, monkeypatch) -> None:
    """The run that made the file has it as before."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    store(cache, notes)
    assert (tmp_path / "made_a").read_bytes() == CONTENT
    assert list(cache.folder.iterdir()) == []
    assert len(notes) == 1
    assert "file a is not kept for the next run (No space left on device)" in notes[0]


def test_a_full_disk_where_a_file_is_wanted_is_not_the_entrys_fault(cache, notes, tmp_path, monkeypatch) -> None:
    """It stays, and the run makes its own."""
    key = store(cache, notes)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    assert cache.take(key, tmp_path / "taken", notes.append) is None
    assert "cannot be used" in notes[0]
    assert kept(cache) == {"file a"}


def test_a_place_that_cannot_be_written_is_said(tmp_path, notes) -> None:
    """Such as below a file."""
    (tmp_path / "file").write_text("")
    cache = ArtifactCache(tmp_path / "file" / "cache", 1_000_000)
    path = tmp_path / "made"
    path.write_bytes(CONTENT)
    cache.put("0" * 64, path, manifest_of(path), notes.append)
    assert len(notes) == 1
    assert "is not kept for the next run" in notes[0]
    assert cache.take("0" * 64, tmp_path / "taken", notes.append) is None
    assert cache.entries() == []


def test_clearing_by_last_use(cache, notes) -> None:
    """Damaged entries count by their folder's age; files of others are left alone."""
    old, new = store(cache, notes, "a"), store(cache, notes, "b")
    os.utime(cache.folder / old / MANIFEST, (100, 100))
    (cache.folder / "README").write_text("somebody's")
    assert [entry.key for entry in cache.clear(before=200)] == [old]
    (cache.folder / new / MANIFEST).write_text("")
    (cache.folder / ".artifact.killed.part").mkdir()
    assert [entry.manifest for entry in cache.clear()] == [None]
    assert [path.name for path in cache.folder.iterdir()] == ["README"]


@pytest.mark.parametrize(("asked", "bound"), [("0", 0), ("2.5", 2_500_000_000)])
def test_the_environment_says_how_much(monkeypatch, asked: str, bound: int) -> None:
    """In gigabytes."""
    monkeypatch.setenv(SIZE, asked)
    assert ArtifactCache.default().bound == bound


@pytest.mark.parametrize("asked", ["", "much", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_wrong_use(monkeypatch, asked: str) -> None:
    """Rather than no cache, or one without bound."""
    monkeypatch.setenv(SIZE, asked)
    with pytest.raises(UsageError, match="set it to gigabytes, or to 0 for no cache"):
        ArtifactCache.default()


def test_unless_told_otherwise_the_disk_sets_a_bound(monkeypatch) -> None:
    """A tenth of it, and no more than 20 GB."""
    monkeypatch.delenv(SIZE)
    assert 0 < ArtifactCache.default().bound <= 20_000_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(50_000_000_000, 0, 0))
    assert ArtifactCache.default().bound == 5_000_000_000


#: One of several processes: it keeps, takes, and evicts the same few files as fast as it can.
WORKER = """
import random, sys, time
from pathlib import Path
from parity.artifacts.cache import ArtifactCache, Manifest
from parity.files import content_sha256
from parity.artifacts.identity import key_of
place, number = Path(sys.argv[1]), int(sys.argv[2])
own = place / str(number)
own.mkdir()
cache, notes, random = ArtifactCache(place / "cache", 6_000), [], random.Random(number)
found = missed = 0
end = time.monotonic() + 2.0
while time.monotonic() < end:
    name = random.choice("abcd")
    identity, content = {"name": name}, name.encode() * 1000
    if cache.take(key_of(identity), own / "taken", notes.append):
        found += 1
        assert (own / "taken").read_bytes() == content
    else:
        missed += 1
        path = own / "made"
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        manifest = Manifest(what=name, identity=identity, size=1000, sha256=content_sha256(path), value=None,
                            seconds=1.0, peak_rss_mb=1.0, made=1.0)
        cache.put(key_of(identity), path, manifest, notes.append)
    if random.random() < 0.02:
        cache.clear()
assert notes == [], notes[:3]
print(found, missed)
"""


def test_several_processes_at_once(tmp_path: Path) -> None:
    """None gets what is half there, none is told of damage, and what is left is whole and no more than a few."""
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
        found, missed = map(int, out.split())
        assert found > 10
        assert missed > 10
    cache, notes = ArtifactCache(tmp_path / "cache", 6_000), []
    for entry in cache.entries():
        assert cache.take(entry.key, tmp_path / "taken", notes.append)
    assert notes == []
    assert list(cache.folder.glob(".*")) == []
