"""Files that are either whole or not there, and the hashes that identify them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parity.errors import ParityError, UsageError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` only if the block ends well.

    Raises:
        UsageError: the folder cannot be written.
        ParityError: the disk is full, or writing failed.
    """
    writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ParityError(f"writing {path} failed ({error.strerror or error}); make room or go elsewhere") from error
    finally:
        temporary.unlink(missing_ok=True)


def writable(path: Path) -> None:
    """Refuse a place that cannot be written, before the work that would end there.

    Raises:
        UsageError: the folder does not exist and cannot be made, or may not be written, or ``path`` is a folder.
    """
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); choose another place") from None
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise ParityError(f"writing {path} failed ({error.strerror or error}); make room or go elsewhere") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(files: Iterable[Path]) -> str:
    """One SHA-256 over the names and contents of ``files``, whatever the order they come in."""
    whole = hashlib.sha256()
    for path in sorted(files, key=lambda file: file.name):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{digest}  {path.name}\n".encode())
    return whole.hexdigest()
