"""Downloads from a hub on 127.0.0.1, each in a process of its own, because the hub's client reads its settings once."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import parity

REPO = "org/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# The client hands chunks of this many bytes to the disk, and resumes after the last one.
CHUNK = 10 * 1024 * 1024

CONFIG = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
    "preprocessor_config.json": b'{"size": 224}',
    "chat_template.jinja": b"{{ messages }}",
}
WEIGHTS = {
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
    "model-1.safetensors": random.Random(1).randbytes(100_000),
    "model-2.safetensors": random.Random(2).randbytes(200_000),
}
UNWANTED = {
    "README.md": b"# name",
    "modeling_name.py": b"raise SystemExit",
    "chat_template.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "model.pt": b"pickle",
    "consolidated.pth": b"pickle",
    "tf_model.h5": b"pickle",
    "training_args.pkl": b"pickle",
    "onnx/model.safetensors": b"a copy",
    "onnx/config.json": b"{}",
}

# Loaded by its path: the package around it reads checkpoints and so imports torch, which takes seconds.
CHILD = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("hub", {path!r})
hub = sys.modules["hub"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)
from parity.errors import WeightsError
{prelude}
steps = []
try:
    folder, commit = hub.download({repo!r}, {revision!r}, hub.{wanted}, on_progress=steps.append)
    result = {{"folder": str(folder), "commit": commit}}
except WeightsError as error:
    result = {{"error": str(error)}}
heavy = sorted({{"torch", "transformers", "numpy"}} & sys.modules.keys())
print(json.dumps({{**result, "steps": steps, "heavy": heavy}}))
"""

FULL = """
import errno, huggingface_hub.file_download
def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")
huggingface_hub.file_download.http_get = full
"""


@dataclass
class Hub:
    """What the server serves, how it misbehaves, and what it was asked for."""

    files: dict[str, bytes]
    url: str = ""
    commit: str = COMMIT
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)  # part of a path -> status, X-Error-Code
    cut: dict[str, str] = field(default_factory=dict)  # file -> "close" or "reset", once, in the middle
    chunked: str = ""  # a file that is kept in the hub's chunk store, which does not have it
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def asked(self, part: str = "", method: str = "") -> list[tuple[str, str, dict[str, str]]]:
        return [request for request in self.requests if part in request[1] and method in ("", request[0])]


class Answer(BaseHTTPRequestHandler):
    """The few endpoints that the client uses: repository information, file listing, files."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        for part, (status, code) in self.hub.refuse.items():
            if part in path:
                body = b"<html>" if status == 200 else b'{"error": "said\\nin two lines"}'
                return self.reply(status, body, {"X-Error-Code": code} if code else {})
        if path.startswith(f"/api/models/{REPO}/revision/"):
            info = {"id": REPO, "sha": self.hub.commit, "siblings": [{"rfilename": name} for name in self.hub.files]}
            return self.reply(200, json.dumps(info).encode())
        if path == f"/api/models/{REPO}/tree/{self.hub.commit}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                for name, data in self.hub.files.items()
            ]
            return self.reply(200, json.dumps(entries).encode())
        if path == "/chunk-store-token":
            access = {"X-Xet-Cas-Url": f"{self.hub.url}/chunks", "X-Xet-Access-Token": "x"}
            return self.reply(200, b"", {**access, "X-Xet-Token-Expiration": str(int(time.time()) + 600)})
        prefix = f"/{REPO}/resolve/{self.hub.commit}/"
        if path.startswith(prefix) and (name := path.removeprefix(prefix)) in self.hub.files:
            return self.reply_file(name)
        return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})

    def reply_file(self, name: str) -> None:
        data = self.hub.files[name]
        headers = {"ETag": f'"{digest(data)}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if name == self.hub.chunked:
            headers |= {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{self.hub.url}/chunk-store-token"}
        if self.command == "GET" and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.reply(206, data[start:], headers)
        cut = self.hub.cut.pop(name, "") if self.command == "GET" else ""
        return self.reply(200, data, headers, cut)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: str = "") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not cut:
            self.wfile.write(body)
            return
        # More than a chunk if the file is that large, so that there is something to resume after.
        self.wfile.write(body[: max(len(body) // 2, min(CHUNK + CHUNK // 10, len(body) - 1))])
        self.close_connection = True
        if cut == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub(files={**CONFIG, **WEIGHTS, **UNWANTED})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("AnswerHere", (Answer,), {"hub": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def nowhere() -> str:
    """An address at which nothing listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@dataclass(frozen=True)
class Outcome:
    folder: Path | None
    commit: str
    error: str
    steps: list[str]
    heavy: list[str]
    stderr: str


def download(
    home: Path,
    url: str,
    revision: str = "main",
    *,
    repo: str = REPO,
    wanted: str = "CHECKPOINT",
    prelude: str = "",
    **env: str,
) -> Outcome:
    package = Path(parity.__file__).parent
    hub = str(package / "weights" / "hub.py")
    code = CHILD.format(path=hub, repo=repo, revision=revision, wanted=wanted, prelude=prelude)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=package.parent,
        # Nothing of the caller's settings, proxies and tokens.
        env={"PATH": os.defpath, "HOME": str(home), "HF_HOME": str(home), "HF_ENDPOINT": url, "NO_PROXY": "*", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    return Outcome(
        folder=Path(result["folder"]) if "folder" in result else None,
        commit=result.get("commit", ""),
        error=result.get("error", ""),
        steps=result["steps"],
        heavy=result["heavy"],
        stderr=finished.stderr,
    )


def contents(folder: Path | None) -> dict[str, bytes]:
    assert folder is not None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cache_layout(home: Path, files: dict[str, bytes]) -> Path:
    """A snapshot as a client without file listings leaves it: blobs, a ref, and a folder of links."""
    root = home / "hub" / "models--org--name"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name, data in files.items():
        (root / "blobs" / digest(data)).write_bytes(data)
        (snapshot / name).symlink_to(Path("../../blobs") / digest(data))
    return snapshot


def assert_one_line(outcome: Outcome, *words: str) -> None:
    assert outcome.folder is None
    assert len(outcome.error.splitlines()) == 1
    for word in (REPO, *words):
        assert word in outcome.error


def test_download_brings_the_wanted_files(hub: Hub, tmp_path: Path) -> None:
    """Configs, tokenizers and weights arrive byte by byte; nothing else the repository lists is even asked for."""
    got = download(tmp_path, hub.url)
    assert contents(got.folder) == {**CONFIG, **WEIGHTS}
    assert got.commit == COMMIT
    assert got.folder == tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    asked = {path.rpartition(f"/resolve/{COMMIT}/")[2] for _, path, _ in hub.asked("/resolve/")}
    assert asked == CONFIG.keys() | WEIGHTS.keys()


def test_code_comes_along_when_asked_for(hub: Hub, tmp_path: Path) -> None:
    """With the checkpoint come the files of code, still without pickles; a commit cached without them is completed."""
    download(tmp_path, hub.url, COMMIT)
    got = download(tmp_path, hub.url, COMMIT, wanted="CHECKPOINT_AND_CODE")
    code = {name: data for name, data in UNWANTED.items() if name.endswith(".py")}
    assert contents(got.folder) == {**CONFIG, **WEIGHTS, **code}


def test_tokenizer_alone(hub: Hub, nowhere: str, tmp_path: Path) -> None:
    """Of a repository that lends its tokenizer nothing else is asked for; the next time it is in the cache."""
    got = download(tmp_path, hub.url, wanted="TOKENIZER")
    assert set(contents(got.folder)) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert not hub.asked("model-1.safetensors")
    assert download(tmp_path, nowhere, wanted="TOKENIZER").folder == got.folder
    hub.files = dict(WEIGHTS)
    hub.commit = COMMIT[::-1]
    assert_one_line(download(tmp_path, hub.url, wanted="TOKENIZER"), "has no tokenizer", "--weights")


def test_download_is_quiet(hub: Hub, tmp_path: Path) -> None:
    """Progress goes to the caller, a line per step; without a terminal no bars are drawn, without a token none sent."""
    got = download(tmp_path, hub.url)
    assert all(REPO in step and len(step.splitlines()) == 1 for step in got.steps)
    assert any(COMMIT in step for step in got.steps)
    assert got.stderr == ""
    assert not any("authorization" in headers for _, _, headers in hub.requests)
    assert got.heavy == []


def test_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    """HF_TOKEN goes into the Authorization header of every request for the repository."""
    download(tmp_path, hub.url, HF_TOKEN="hf_secret")
    assert hub.asked(REPO)
    assert {headers.get("authorization") for _, _, headers in hub.asked(REPO)} == {"Bearer hf_secret"}


def test_pinned_commit_in_the_cache_costs_no_request(hub: Hub, tmp_path: Path) -> None:
    """The second call for a commit is answered from the cache without a single request."""
    first = download(tmp_path, hub.url, COMMIT)
    assert contents(first.folder) == {**CONFIG, **WEIGHTS}
    hub.requests.clear()
    second = download(tmp_path, hub.url, COMMIT)
    assert (second.folder, second.commit) == (first.folder, COMMIT)
    assert hub.requests == []


def test_branch_that_moved_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    """A branch is asked for again, and stands for the commit that it has now."""
    first = download(tmp_path, hub.url)
    hub.commit = COMMIT[::-1]
    hub.files["model-1.safetensors"] = b"new weights"
    second = download(tmp_path, hub.url)
    assert (first.commit, second.commit) == (COMMIT, COMMIT[::-1])
    assert contents(second.folder)["model-1.safetensors"] == b"new weights"
    assert contents(first.folder) == {**CONFIG, **WEIGHTS}


@pytest.mark.parametrize(("revision", "offline"), [("main", "0"), ("main", "1"), (COMMIT, "0")])
def test_cache_is_used_without_network(nowhere: str, tmp_path: Path, revision: str, offline: str) -> None:
    """A snapshot in the cache, even one without a file listing, needs no hub, whether by wish or by misfortune."""
    snapshot = cache_layout(tmp_path, {**CONFIG, **WEIGHTS})
    got = download(tmp_path, nowhere, revision, HF_HUB_OFFLINE=offline)
    assert (got.folder, got.commit, got.error) == (snapshot, COMMIT, "")


def test_cache_without_a_tokenizer_is_completed(hub: Hub, tmp_path: Path) -> None:
    """A snapshot that holds only what another program needed is not taken for whole while the hub can be asked."""
    cache_layout(tmp_path, {"config.json": CONFIG["config.json"], **WEIGHTS})
    got = download(tmp_path, hub.url, COMMIT)
    assert contents(got.folder) == {**CONFIG, **WEIGHTS}
    assert not hub.asked("model-1.safetensors", "GET")


@pytest.mark.parametrize("missing", ["config.json", "model-2.safetensors"])
def test_cache_with_a_hole_is_not_used(nowhere: str, tmp_path: Path, missing: str) -> None:
    """Offline, a snapshot without its config or one of its shards is an error, not a checkpoint."""
    files = {**CONFIG, **WEIGHTS}
    del files[missing]
    cache_layout(tmp_path, files)
    assert_one_line(download(tmp_path, nowhere, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE", "--weights")


def test_cache_is_used_when_the_hub_refuses(hub: Hub, tmp_path: Path) -> None:
    """A whole snapshot outlives the hub's trouble, and the caller is told where it came from."""
    first = download(tmp_path, hub.url)
    hub.refuse[REPO] = (503, "")
    second = download(tmp_path, hub.url)
    assert (second.folder, second.commit) == (first.folder, COMMIT)
    assert "from the cache" in second.steps[-1]


def test_broken_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    """A connection that closes in the middle of a file is taken up where it ended, by a range, in the same call."""
    hub.files["model-1.safetensors"] = random.Random(3).randbytes(CHUNK + CHUNK // 5)
    hub.cut["model-1.safetensors"] = "close"
    got = download(tmp_path, hub.url)
    assert contents(got.folder) == {**CONFIG, **WEIGHTS, "model-1.safetensors": hub.files["model-1.safetensors"]}
    ranges = [headers.get("range") for _, _, headers in hub.asked("model-1.safetensors", "GET")]
    assert ranges == [None, f"bytes={CHUNK}-"]


def test_interrupted_download_leaves_nothing_corrupt(hub: Hub, tmp_path: Path) -> None:
    """A reset connection is an error without a trace of the half file; the next call fetches that file alone."""
    hub.cut["model-2.safetensors"] = "reset"
    first = download(tmp_path, hub.url)
    assert_one_line(first, "broke off", "try again")
    cache = tmp_path / "hub" / "models--org--name"
    wanted = {**CONFIG, **WEIGHTS}
    left = contents(cache / "snapshots" / COMMIT)
    assert "model-2.safetensors" not in left
    assert left.items() <= wanted.items()
    assert all(digest(path.read_bytes()) == path.name for path in (cache / "blobs").iterdir())

    hub.requests.clear()
    second = download(tmp_path, hub.url)
    assert contents(second.folder) == wanted
    assert {path.rpartition("/")[2] for _, path, _ in hub.asked("/resolve/", "GET")} == wanted.keys() - left.keys()


def test_chunk_store_fails(hub: Hub, tmp_path: Path) -> None:
    """The hub's chunk store has a client of its own (hf_xet), whose failures read like the others'."""
    hub.chunked = "model-1.safetensors"
    assert_one_line(download(tmp_path, hub.url), "broke off", "404", "try again")
    assert hub.asked("/chunks/")
    assert not list(tmp_path.rglob("*.incomplete"))


def test_half_a_download_is_not_used_offline(hub: Hub, nowhere: str, tmp_path: Path) -> None:
    """What an interrupted download left behind is never returned as a checkpoint."""
    hub.cut["tokenizer.json"] = "reset"
    assert_one_line(download(tmp_path, hub.url, COMMIT), "try again")
    assert_one_line(download(tmp_path, nowhere, COMMIT), "cannot be reached")


@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_gated_repository(hub: Hub, tmp_path: Path, where: str) -> None:
    """Without the licence, whether the listing or only the files are refused, the page to accept it at is named."""
    hub.refuse[where] = (403, "GatedRepo")
    assert_one_line(download(tmp_path, hub.url), f"accept the licence at {hub.url}/{REPO}", "hf auth login", "HF_TOKEN")


@pytest.mark.parametrize("status", [401, 404])
def test_missing_repository(hub: Hub, tmp_path: Path, status: int) -> None:
    """A repository that is not there, or private, sends to its name and to logging in."""
    hub.refuse[REPO] = (status, "RepoNotFound")
    assert_one_line(download(tmp_path, hub.url), hub.url, "check the name", "private", "hf auth login")


@pytest.mark.parametrize("cached", [False, True])
def test_missing_revision(hub: Hub, tmp_path: Path, *, cached: bool) -> None:
    """A revision that the repository does not have is named, and nothing in the cache stands in for it."""
    if cached:
        cache_layout(tmp_path, {**CONFIG, **WEIGHTS})
    hub.refuse["/revision/"] = (404, "RevisionNotFound")
    assert_one_line(download(tmp_path, hub.url, "main"), "at main", "no such revision", f"{hub.url}/{REPO}")


@pytest.mark.parametrize(("where", "said"), [("/api/", "401: said in two lines"), ("/resolve/", "403")])
def test_refused_token(hub: Hub, tmp_path: Path, where: str, said: str) -> None:
    """A token that the hub does not accept, or not for the files, sends to its permissions and to logging in again."""
    hub.refuse[where] = (int(said[:3]), "")
    got = download(tmp_path, hub.url, HF_TOKEN="hf_old")
    assert_one_line(got, f"({said})", "permissions", "hf auth login")


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_server_down(nowhere: str, tmp_path: Path, revision: str) -> None:
    """Without network and cache, the ways out are to connect or to use a local folder."""
    got = download(tmp_path, nowhere, revision)
    assert_one_line(got, revision, f"{nowhere} cannot be reached", "connect to the network", "--weights")


@pytest.mark.parametrize(("status", "words"), [(503, "in trouble"), (429, "too many requests")])
def test_hub_busy_or_down(hub: Hub, tmp_path: Path, status: int, words: str) -> None:
    """When the hub is down or limits the rate, trying again is worth it."""
    hub.refuse[REPO] = (status, "")
    assert_one_line(download(tmp_path, hub.url), words, str(status), "try again, the download resumes")


def test_not_a_hub(hub: Hub, tmp_path: Path) -> None:
    """A page that answers 200 to everything, such as a hotel's login page, is told apart from the hub."""
    hub.refuse["/"] = (200, "")
    assert_one_line(download(tmp_path, hub.url), "does not answer like the hub", "HF_ENDPOINT")


def test_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    """A repository of pickles is refused before anything is downloaded, even with safetensors in a subfolder."""
    hub.files = {**CONFIG, **UNWANTED}
    assert_one_line(download(tmp_path, hub.url), "only safetensors checkpoints are read", "--weights")
    assert hub.asked("/resolve/") == []


def test_bad_name(nowhere: str, tmp_path: Path) -> None:
    """What cannot be a repository's name is refused without network."""
    got = download(tmp_path, nowhere, COMMIT, repo="org/name/more")
    assert_one_line(got, "owner/name")


@pytest.mark.parametrize(
    "prelude",
    [
        "import shutil, types; shutil.disk_usage = lambda _: types.SimpleNamespace(free=10)",
        FULL,
    ],
    ids=["foreseen", "happened"],
)
def test_disk_full(hub: Hub, tmp_path: Path, prelude: str) -> None:
    """A disk that is too small, foreseen before the transfer or met in it, is said to be so."""
    assert_one_line(download(tmp_path, hub.url, prelude=prelude), "does not fit on the disk", "HF_HOME", str(tmp_path))
    assert not list(tmp_path.rglob("*.incomplete"))


def test_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    """A cache folder that cannot be made is named."""
    (tmp_path / "hub").write_text("a file where the folder should be")
    assert_one_line(download(tmp_path, hub.url), "cannot be kept in the cache", str(tmp_path / "hub"), "HF_HOME")


def test_a_tokenizer_kept_elsewhere_is_put_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenELM's repositories have none: the checkpoint is the weights of one and the tokenizer of another."""
    from models import registry
    from parity.weights import resolve
    from parity.weights.hub import TOKENIZER

    model = registry.get("openelm-270m")
    drawn = resolve(model, "tiny").folder
    weights, tokenizer = tmp_path / COMMIT, tmp_path / "tokenizer"
    for folder, names in ((weights, ["config.json", "model.safetensors"]), (tokenizer, ["tokenizer.json"])):
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(drawn / name)
    asked = []

    def download(repo: str, revision: str, wanted: object, **_: object) -> tuple[Path, str]:
        asked.append((repo, revision))
        return (tokenizer, "b") if wanted is TOKENIZER else (weights, COMMIT)

    monkeypatch.setattr("parity.weights.hub.download", download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = resolve(model, "hub")
    assert asked == [("apple/OpenELM-270M", "main"), ("meta-llama/Llama-2-7b-hf", "main")]
    assert {path.name for path in found.folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (found.label, found.revision, found.sha256) == ("hub", COMMIT, resolve(model, str(weights)).sha256)
