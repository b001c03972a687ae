"""The folder of kept files: one folder an entry, named by its key, whole or not there, and never trusted unread."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from parity.artifacts.identity import Sources, first_sources, key_of
from parity.errors import UsageError
from parity.files import content_sha256, scratch_folder

#: What an entry holds. Nothing in a manifest names a file, so none can lead out of the folder.
FILE, MANIFEST = "artifact", "manifest.json"
#: The environment variable that says how many gigabytes may be kept; 0 for no cache.
SIZE = "PARITY_CACHE_GB"
#: Bytes that are kept unless told otherwise, and at most that share of the disk.
MOST_BYTES, DISK_SHARE = 20_000_000_000, 0.1
_KEY = re.compile("[0-9a-f]{64}")
#: The folders of entries that are on their way in or out. Whoever comes next clears away those of killed processes.
_PASSING = "artifact"
#: What a link between two file systems, or where there are none, ends in; a copy does as well.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a kept file.

    ``what`` is for people; ``value`` is what its job returned; ``seconds`` and ``peak_rss_mb`` are what making it cost,
    ``made`` when that was, in seconds since 1970.
    """

    what: str
    identity: Mapping[str, Any]
    size: int
    sha256: str
    value: Any
    seconds: float
    peak_rss_mb: float
    made: float

    def text(self) -> str:
        """As it is kept, with a hash over all of it."""
        facts = asdict(self)
        return json.dumps({"sha256": key_of(facts), "facts": facts}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path, key: str) -> Self:
        """The manifest of the entry ``key``.

        Raises:
            OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError: it is not there, or not as it was
                written.
        """
        _require_regular(path)
        document = json.loads(path.read_text(encoding="utf-8"))
        facts = document["facts"]
        if key_of(facts) != document["sha256"] or key_of(facts["identity"]) != key:
            raise ValueError("its manifest is not the one that was written for it")
        manifest = cls(**facts)
        for each in ("seconds", "peak_rss_mb", "made"):
            if not math.isfinite(getattr(manifest, each)):
                raise ValueError(f"its {each} is no number")
        if not isinstance(manifest.what, str) or type(manifest.size) is not int:
            raise TypeError("its manifest has values of another kind")
        return manifest


#: What reading a manifest, or a value in it, may raise.
DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Entry:
    """An entry as a list has it. ``manifest`` is missing where it cannot be read; ``used`` is when it last was."""

    key: str
    size: int
    used: float
    manifest: Manifest | None


@dataclass(frozen=True)
class ArtifactCache:
    """Kept files in ``folder``, at most ``bound`` bytes of them.

    ``sources`` is the code as it was when the first was made, which must be before the first job of the process is
    started: jobs import theirs later, and all after it the same.
    """

    folder: Path
    bound: int
    sources: Sources | None = field(default_factory=first_sources)

    @classmethod
    def default(cls) -> Self:
        """The one in the user's cache folder.

        Raises:
            UsageError: the environment asks for no size that there is.
        """
        import platformdirs

        folder = platformdirs.user_cache_path("parity", appauthor=False) / "artifacts"
        return cls(folder, _bound(os.environ.get(SIZE), folder))

    def take(self, key: str, destination: Path, say: Say) -> Manifest | None:
        """Put the file of an entry at ``destination`` and say what is known of it; ``None`` if it is not there.

        It is a link where there can be one, so that whoever evicts the entry takes the file from nobody, and nobody may
        write into it. An entry that is damaged is removed and said to be.
        """
        folder = self.folder / key
        try:
            manifest = Manifest.read(folder / MANIFEST, key)
            _require_regular(folder / FILE)
            with _placed(folder / FILE, destination):
                if destination.stat().st_size != manifest.size or content_sha256(destination) != manifest.sha256:
                    raise ValueError("its file is not the one that was made")
        except _NoRoomError as error:
            say(f"a kept file cannot be used ({error}); it is made again")
            return None
        except DAMAGE as error:
            # One that is not there, was evicted just now, or is there again by another process, is not damaged.
            missing = isinstance(error, FileNotFoundError) and not _lacks_something(folder)
            if not missing:
                self.discard(key, f"{error}", say)
            return None
        try:
            with suppress(FileNotFoundError):  # evicted just now
                os.utime(folder / MANIFEST)
        except OSError as error:
            say(f"when {folder} was used cannot be noted ({error.strerror}); it may be evicted early")
        return manifest

    def put(self, key: str, file: Path, manifest: Manifest, say: Say, keep: Collection[str] = ()) -> None:
        """Keep a file that nobody writes into any more, and no entry longer than fits beside it but those in ``keep``.

        What stands in the way is said, and the file is the caller's as before.
        """
        text = manifest.text()
        size = manifest.size + len(text)
        try:
            if not self._make_room(size, keep):
                gigabytes = f"{size / 1e9:.2g} GB do not fit in {self.bound / 1e9:.3g}"
                say(f"{manifest.what} is not kept for the next run, {gigabytes}; set {SIZE} to keep more")
                return
            with scratch_folder(self.folder, _PASSING) as temporary:
                _link(file, temporary / FILE)
                (temporary / MANIFEST).write_text(text, encoding="utf-8")
                try:
                    temporary.rename(self.folder / key)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process made the same
                        raise
        except (OSError, UsageError) as error:
            said = getattr(error, "strerror", None) or error
            say(f"{manifest.what} is not kept for the next run ({said}); see to {self.folder}, or set {SIZE}=0")

    def discard(self, key: str, why: str, say: Say) -> None:
        """Remove a damaged entry, and say so."""
        say(f"{self.folder / key} is damaged ({why}); it is made again")
        try:
            self._remove(key)
        except (OSError, UsageError) as error:
            say(f"{self.folder / key} cannot be removed ({error}); remove it yourself")

    def entries(self) -> list[Entry]:
        """All there are, the one that was used last first. Their files are not read."""
        found = self._entries() if self.folder.is_dir() else ()
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self, before: float = math.inf) -> list[Entry]:
        """Remove the entries that were last used ``before`` then, in seconds since 1970, and say which they were.

        What killed processes left half done goes as well.

        Raises:
            UsageError, OSError: the folder cannot be written.
        """
        removed = [entry for entry in self.entries() if entry.used < before]
        if self.folder.is_dir():
            self._remove(*(entry.key for entry in removed))
        return removed

    def _entries(self) -> Iterator[Entry]:
        for folder in self.folder.iterdir():
            if not _KEY.fullmatch(folder.name):
                continue
            with suppress(FileNotFoundError):  # evicted while we look
                size = sum(path.lstat().st_size for path in (folder.iterdir() if folder.is_dir() else ()))
                try:
                    manifest = Manifest.read(folder / MANIFEST, folder.name)
                    yield Entry(folder.name, size, (folder / MANIFEST).stat().st_mtime, manifest)
                except DAMAGE:
                    yield Entry(folder.name, size, folder.lstat().st_mtime, None)

    def _make_room(self, size: int, keep: Collection[str]) -> bool:
        """Whether ``size`` more bytes fit, once the entries are gone that nobody has used for longest."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        protected = sum(entry.size for entry in entries if entry.key in keep)
        if protected + size > self.bound:
            return False
        while total + size > self.bound:
            entry = entries.pop()
            if entry.key not in keep:
                self._remove(entry.key)
                total -= entry.size
        return True

    def _remove(self, *keys: str) -> None:
        """Each at once for everybody else, however long its files take."""
        with scratch_folder(self.folder, _PASSING) as bin_:
            for key in keys:
                with suppress(FileNotFoundError):  # another process was faster
                    (self.folder / key).rename(bin_ / key)


class _NoRoomError(Exception):
    """A kept file cannot be put where it is wanted, for which it cannot be blamed."""


@contextmanager
def _placed(source: Path, destination: Path) -> Iterator[None]:
    """The same file at ``destination``, unless the block ends badly."""
    destination.unlink(missing_ok=True)
    try:
        try:
            _link(source, destination)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _NoRoomError(f"{destination}: {error.strerror}") from error
        yield
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


def _link(source: Path, destination: Path) -> None:
    """The same file under another name, or a copy of it where a name cannot be had."""
    try:
        destination.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, destination)


def _lacks_something(folder: Path) -> bool:
    """Whether there is an entry, and not all of it: the same one before and after looking, for it may be evicted."""
    try:
        before = folder.lstat()
        lacking = not all(os.path.lexists(folder / name) for name in (FILE, MANIFEST))
        after = folder.lstat()
    except FileNotFoundError:
        return False
    return lacking and (before.st_ino, before.st_ctime_ns) == (after.st_ino, after.st_ctime_ns)


def _require_regular(path: Path) -> None:
    """A link may lead anywhere, and a pipe never ends."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError(f"{path.name} is no ordinary file")


def _bound(asked: str | None, folder: Path) -> int:
    if asked is None:
        place = next(path for path in (folder, *folder.parents) if path.is_dir())
        return min(MOST_BYTES, int(DISK_SHARE * shutil.disk_usage(place).total))
    try:
        gigabytes = float(asked)
    except ValueError:
        gigabytes = math.nan
    if not (math.isfinite(gigabytes) and gigabytes >= 0):
        raise UsageError(f"{SIZE}={asked} is no size; set it to gigabytes, or to 0 for no cache")
    return int(gigabytes * 1e9)
