"""Files that are either whole or not there, and the hashes that identify them."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from parity.errors import ParityError, UsageError

#: Nanoseconds after which a file's times tell whether it was changed since.
_SETTLED = 2 * 10**9


@contextmanager
def scratch_folder(place: Path | None = None, name: str = "parity") -> Iterator[Path]:
    """A folder in ``place`` (by default the system's temporary one) that is gone when the block ends.

    A killed process cannot tidy up, so whoever comes next does: folders of the same ``name`` there that no living
    process holds locked are removed first. The system drops a lock with its process, however that ends.

    Raises:
        UsageError: ``place`` cannot be written.
    """
    place = place or Path(tempfile.gettempdir())
    for left in place.glob(f".{glob.escape(name)}.*.part"):
        with _held(left) as held:
            if held:
                shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as stack:
        folder = _claimed(place, name, stack)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _claimed(place: Path, name: str, stack: ExitStack) -> Path:
    """A new folder, locked until ``stack`` ends; another one if it was taken for abandoned before it was locked."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=place))
            stack.enter_context(_held(folder, wait=True))
            if folder.is_dir():
                return folder
    except OSError as error:
        raise UsageError(f"{place} cannot be written ({error.strerror}); choose another place") from None


@contextmanager
def _held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a folder of this user for as long as the block lasts, and say whether that could be done.

    On a file system without locks it never can: then nothing is protected, and nothing is taken for abandoned.
    """
    with ExitStack() as stack:
        held = False
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = os.fstat(descriptor).st_uid == os.getuid()
        yield held


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file of the same name in a folder beside ``path`` to write to; it takes its place if the block ends well.

    Raises:
        UsageError: the folder cannot be written.
        ParityError: the disk is full, or writing failed.
    """
    writable(path)
    with scratch_folder(path.parent, path.name) as folder:
        try:
            yield folder / path.name
            (folder / path.name).replace(path)
        except OSError as error:
            raise _unwritten(path, error) from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file, as UTF-8, whole or not at all. Raises as ``whole_file`` does."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """The same for JSON, which holds neither NaN nor infinity."""
    write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def writable(*paths: Path | None) -> None:
    """Refuse places that cannot be written, before the work that would end there.

    Raises:
        UsageError: the folder does not exist and cannot be made, or may not be written, or a path is a folder.
    """
    for path in filter(None, paths):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UsageError(f"{path} cannot be written ({error.strerror}); choose another place") from None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Like ``whole_file`` for a folder. If another process finished the same folder first, theirs is kept."""
    with scratch_folder(path.parent, path.name) as temporary:
        try:
            yield temporary
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
        except OSError as error:
            raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> ParityError:
    return ParityError(f"writing {path} failed ({error.strerror or error}); make room or go elsewhere")


def content_sha256(path: Path) -> str:
    """Of the contents of a file, whatever its name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unread_sha256(path: Path) -> str:
    """The same, of a file that is not read again unless the system says that it may have been written to.

    Its clock is too coarse to tell two changes at the same moment apart, so a file that has just been changed is read.
    """
    stat = path.stat()
    if time.time_ns() - stat.st_ctime_ns < _SETTLED:
        return content_sha256(path)
    return _sha256_as_it_is(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _sha256_as_it_is(path: Path, *_: int) -> str:
    return content_sha256(path)


def sha256_of(files: Iterable[Path], content: Callable[[Path], str] = content_sha256) -> str:
    """One SHA-256 over the names of ``files`` and those of their ``content``, whatever the order they come in."""
    whole = hashlib.sha256()
    for path in sorted(files, key=lambda file: file.name):
        whole.update(f"{content(path)}  {path.name}\n".encode())
    return whole.hexdigest()
