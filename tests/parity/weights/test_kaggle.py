"""Kaggle's checkpoints: downloads from a Kaggle on 127.0.0.1, what a folder lacks, and the ladder on such a folder."""

from __future__ import annotations

import base64
import errno
import gc
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from models import registry
from models.authoring.checkpoint import SINGLE, Checkpoint
from models.authoring.hf_config import HFConfig
from models.errors import CheckpointError
from parity import isolated
from parity.errors import UsageError, WeightsError
from parity.golden import identity
from parity.inputs import read_prompts, tokenize
from parity.progress import Reporter
from parity.weights import kind_of, resolve
from parity.weights.kaggle import download
from parity.weights.published import completed, published

# The client leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

HANDLE = "google/gemma/pyTorch/2b"
VERSION = 3
FILES = {"gemma-2b.ckpt": bytes(range(256)) * 1000, "tokenizer.model": b"pieces", "config.json": b"{}"}


@dataclass
class Kaggle:
    """What the server has, how it misbehaves, and what it was asked for."""

    files: dict[str, bytes]
    url: str = ""
    refuse: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # request -> status and body
    cut: set[str] = field(default_factory=set)  # files that break off in the middle, once
    spoil: set[str] = field(default_factory=set)  # files that arrive damaged
    requests: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)  # name, body, authorization

    def asked(self, name: str) -> list[tuple[str, dict[str, Any], str]]:
        return [request for request in self.requests if request[0] == name]


class Answer(BaseHTTPRequestHandler):
    """The three requests that the client makes for a model."""

    protocol_version = "HTTP/1.1"
    kaggle: Kaggle

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        name = self.path.rpartition("/")[2]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.kaggle.requests.append((name, body, self.headers.get("Authorization", "")))
        if name in self.kaggle.refuse:
            return self.reply(*self.kaggle.refuse[name], kind="application/json")
        if name == "GetModelInstance":
            return self.reply(200, json.dumps({"versionNumber": VERSION}).encode(), kind="application/json")
        if name == "ListModelInstanceVersionFiles":
            listed = {"files": [{"name": file} for file in self.kaggle.files], "nextPageToken": ""}
            return self.reply(200, json.dumps(listed).encode(), kind="application/json")
        content = self.kaggle.files[body["path"]]
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        if body["path"] in self.kaggle.spoil:
            content = content[::-1]
        cut = body["path"] in self.kaggle.cut
        self.kaggle.cut.discard(body["path"])
        return self.reply(200, content, cut=cut, headers={"x-goog-hash": f"md5={digest}"})

    def reply(
        self,
        status: int,
        body: bytes,
        *,
        kind: str = "binary",
        cut: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut


class Server(ThreadingHTTPServer):
    """Silent when the client hangs up."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def connections() -> Iterator[None]:
    """Collect what a test's client leaves behind while it may, not in some later test."""
    yield
    gc.collect()


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kaggle]:
    """A Kaggle of our own that has one model, for an account that has accepted its licence."""
    state = Kaggle(dict(FILES))
    server = Server(("127.0.0.1", 0), type("AnswerHere", (Answer,), {"kaggle": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    point_to(state.url, monkeypatch, tmp_path)
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Send the client to ``url`` instead of Kaggle, with nothing of the caller's settings, proxies and credentials."""
    from kagglesdk import kaggle_env

    for name in os.environ:
        if name.startswith(("KAGGLE", "COLAB", "TBE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / ".kaggle"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(home / "kaggle"))
    for environment in kaggle_env.KaggleEnv:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, environment, url)


def failure(handle: str = HANDLE) -> str:
    """The one line that the download ends with."""
    with pytest.raises(WeightsError) as caught:
        download(handle)
    assert len(str(caught.value).splitlines()) == 1
    assert handle in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- downloads


def test_download(kaggle: Kaggle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All files of the newest version arrive in the client's own cache, and nothing is printed off a terminal."""
    steps: list[str] = []
    folder, revision = download(HANDLE, steps.append)
    assert contents(folder) == FILES
    assert revision == f"{HANDLE}/{VERSION}"
    assert folder == tmp_path / "kaggle" / "models" / HANDLE / str(VERSION)
    assert all(request[2].startswith("Basic ") for request in kaggle.requests)
    assert steps == [f"{HANDLE} is asked for on Kaggle", f"{revision} is in {folder}"]
    assert capfd.readouterr() == ("", "")


def test_version_in_the_cache_costs_no_request(kaggle: Kaggle) -> None:
    """Once whole, a named version is there without Kaggle."""
    folder, revision = download(HANDLE)
    kaggle.requests.clear()
    assert download(revision) == (folder, revision)
    assert kaggle.requests == []


@pytest.mark.parametrize("form", ["access_token", "kaggle.json", "KAGGLE_API_TOKEN"])
def test_credentials_from_their_usual_places(
    kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """Tokens and key files are found where Kaggle's own tools keep them."""
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    if form == "KAGGLE_API_TOKEN":
        monkeypatch.setenv(form, "token")
    else:
        (tmp_path / ".kaggle").mkdir()
        text = "token" if form == "access_token" else json.dumps({"username": "somebody", "key": "secret"})
        (tmp_path / ".kaggle" / form).write_text(text)
    download(HANDLE)
    basic = base64.b64encode(b"somebody:secret").decode()
    assert kaggle.requests[0][2] == (f"Basic {basic}" if form == "kaggle.json" else "Bearer token")


@pytest.mark.parametrize("status", [401, 403])
def test_no_credentials(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Refused without an account: where to make a token, where to keep it, and which licence to accept."""
    monkeypatch.delenv("KAGGLE_USERNAME")
    kaggle.refuse["GetModelInstance"] = (status, b'{"code": 403, "message": "no"}')
    message = failure()
    assert "needs an account that has accepted its licence" in message
    assert "https://www.kaggle.com/models/google/gemma/pyTorch/2b" in message
    assert "~/.kaggle/access_token" in message
    assert kaggle.requests[0][2] == ""


@pytest.mark.parametrize(
    ("request_name", "status", "words"),
    [
        ("GetModelInstance", 401, ("does not accept the token (401)", "make a token")),
        ("DownloadModelInstanceVersion", 403, ("is refused to this account (403)", "accept the licence at https://")),
        ("GetModelInstance", 404, ("is not on Kaggle (404)", "choose a variation and version")),
        ("ListModelInstanceVersionFiles", 429, ("too many requests (429)", "wait some minutes")),
        ("GetModelInstance", 503, ("in trouble (503", "try again")),
    ],
)
def test_refusals(kaggle: Kaggle, request_name: str, status: int, words: tuple[str, ...]) -> None:
    """What Kaggle answers with becomes what to do about it, whichever request it was."""
    kaggle.refuse[request_name] = (status, b'{"code": %d, "message": "said\\nin two lines"}' % status)
    message = failure()
    for word in words:
        assert word in message


def test_error_inside_a_good_answer(kaggle: Kaggle) -> None:
    """A refusal that comes with status 200 is one nevertheless."""
    kaggle.refuse["GetModelInstance"] = (200, b'{"code": 403, "message": "no"}')
    assert "Kaggle is in trouble (200: no): try again" in failure()


def test_something_else_answers(kaggle: Kaggle) -> None:
    """A hotel's login page is not Kaggle."""
    kaggle.refuse["GetModelInstance"] = (200, b"<html>")
    assert "what answers is not Kaggle" in failure()


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody listens: the network, a version in the cache, or a folder."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
    point_to(nowhere, monkeypatch, tmp_path)
    message = failure()
    assert "Kaggle cannot be reached" in message
    assert "name a version that is in the cache" in message


def test_transfer_that_breaks_off(kaggle: Kaggle) -> None:
    """Half a file is never taken for a whole one, and the next call completes it."""
    kaggle.cut.add("gemma-2b.ckpt")
    assert "broke off" in failure()
    folder, _ = download(HANDLE)
    assert contents(folder) == FILES


def test_damaged_transfer(kaggle: Kaggle) -> None:
    """What does not have the checksum that Kaggle names is not kept."""
    kaggle.spoil.add("gemma-2b.ckpt")
    assert "broke off (DataCorruptionError" in failure()


def test_full_disk(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is said to be full, and which setting leads elsewhere."""
    import kagglehub.http_resolver

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kagglehub.http_resolver, "download_file", full)
    assert kaggle.files
    message = failure()
    assert "does not fit on the disk" in message
    assert "KAGGLEHUB_CACHE" in message


def test_cache_that_cannot_be_written(kaggle: Kaggle, tmp_path: Path) -> None:
    """A file in the place of the cache folder."""
    (tmp_path / "kaggle").write_text("")
    assert kaggle.files
    assert "cannot be kept in the cache (NotADirectoryError" in failure()


def test_credentials_file_out_of_order(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key file that is no JSON is named; nothing is asked without the account that was meant."""
    monkeypatch.delenv("KAGGLE_KEY")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text("{")
    assert "kaggle.json" in failure()
    assert kaggle.requests == []


@pytest.mark.parametrize(
    "handle", ["gemma", "google/gemma", "a/b/c/d/e/f", "google//pyTorch/2b", "google/gemma/p/2b/x"]
)
def test_handles_that_are_none(kaggle: Kaggle, handle: str) -> None:
    """A handle has four parts and perhaps a version; anything else is refused unasked."""
    assert "handle" in failure(handle)
    assert kaggle.requests == []


def test_unknown_framework(kaggle: Kaggle) -> None:
    """A framework that Kaggle does not have is refused by name."""
    assert "'paper' is not a valid ModelFramework" in failure("google/gemma/paper/2b")
    assert kaggle.requests == []


# -- from a name to a folder


def test_names() -> None:
    """``kaggle`` alone is the preset's handle, ``kaggle@HANDLE`` another."""
    assert kind_of("kaggle") == kind_of(f"kaggle@{HANDLE}") == "kaggle"
    assert kind_of("kaggles") == "path"


def test_preset_that_kaggle_does_not_have() -> None:
    """A preset without a handle is refused with what to give instead."""
    with pytest.raises(UsageError, match="smollm-135m has no known place on Kaggle; use hub, or name one as kaggle@"):
        resolve(registry.get("smollm-135m"), "kaggle")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache folder, for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def drawn(request: pytest.FixtureRequest) -> Path:
    """The tiny checkpoint of a preset, from the user's cache."""
    return resolve(registry.get(request.param), "tiny").folder


def convert(drawn: Path, folder: Path) -> Path:
    """A drawn checkpoint as Kaggle would have it, with its configuration and tokenizer beside it."""
    import torch

    with Checkpoint(drawn) as tensors:
        state = {"freqs_cis": torch.polar(torch.ones(2), torch.ones(2))}
        for name, tensor in tensors.items():
            if name == "model.embed_tokens.weight":
                state["embedder.weight"] = tensor
            elif ".q_proj." in name:
                parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                state[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
            elif ".k_proj." not in name and ".v_proj." not in name:
                state[name] = tensor
    folder.mkdir()
    torch.save({"model_state_dict": state}, folder / "model.ckpt")
    for path in drawn.glob("*.json"):
        if path.name != "manifest.json":
            shutil.copyfile(path, folder / path.name)
    return folder


PRESETS = pytest.mark.parametrize("drawn", ["gemma-2b", "gemma-7b", "gemma-2-2b"], indirect=True)
ONE = pytest.mark.parametrize("drawn", ["gemma-2b"], indirect=True)


@PRESETS
def test_copy_for_the_original_has_the_same_bits(drawn: Path, tmp_path: Path) -> None:
    """Through both weight maps, every tensor comes out under its published name as it was drawn; then the copy goes."""
    folder = convert(drawn, tmp_path / "kaggle")
    with published("gemma", folder, tmp_path, Reporter(None, quiet=True)) as made:
        with Checkpoint(drawn) as expected, Checkpoint(made) as found:
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert tensor.numpy().tobytes() == found[name].numpy().tobytes(), name
        assert (made / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert not made.exists()


@ONE
def test_published_folder_is_used_as_it_is(drawn: Path, tmp_path: Path) -> None:
    """Nothing is copied when the original can read the folder."""
    with published("gemma", drawn, tmp_path, Reporter(None, quiet=True)) as folder:
        assert folder == drawn
    assert list(tmp_path.iterdir()) == []


@ONE
def test_no_room_for_the_copy(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written for the original is said in one line with the space it needs."""
    import safetensors.torch

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def run(_name: str, job: Any, _progress: object) -> None:
        job(lambda _done, _total: None)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(isolated, "run", run)
    reporter = Reporter(None, quiet=True)
    folder = convert(drawn, tmp_path / "kaggle")
    with (
        pytest.raises(WeightsError, match="make room, or set TMPDIR"),
        published("gemma", folder, tmp_path, reporter),
    ):
        pass


@ONE
def test_folder_with_its_own_configuration(drawn: Path, tmp_path: Path, cache: Path) -> None:
    """A ``config.json`` of a model type wins over any preset, and the folder is used where it is."""
    folder = convert(drawn, tmp_path / "kaggle")
    weights = resolve(registry.get("gemma-2-2b"), str(folder))
    assert (weights.folder, weights.label, weights.kind) == (folder, "kaggle", "path")
    assert not cache.exists()


@ONE
@pytest.mark.parametrize("config", [None, {"vocab_size": 256000, "num_hidden_layers": 18}])
def test_folder_without_a_configuration(
    drawn: Path, tmp_path: Path, cache: Path, config: dict[str, Any] | None
) -> None:
    """Without one, or with one that is not transformers', the preset's published values are taken, and that is said."""
    folder = convert(drawn, tmp_path / "2")
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    before, notes = sorted(folder.iterdir()), []
    model = registry.get("gemma-7b")
    weights = resolve(model, str(folder), say=notes.append)
    assert json.loads((weights.folder / "config.json").read_text()) == model.preset.values()
    assert weights.folder.parent == cache / "parity" / "weights" / "linked"
    assert (weights.folder / "model.ckpt").samefile(folder / "model.ckpt")
    assert (weights.folder / "tokenizer.json").samefile(folder / "tokenizer.json")
    assert weights.label == "2"
    assert notes == [f"{folder} has no configuration of transformers; it is taken to be gemma-7b"]
    assert sorted(folder.iterdir()) == before
    assert resolve(model, str(folder)) == weights
    with pytest.raises(CheckpointError, match="where the configuration asks for"):
        model.family.load(weights.folder)


@ONE
def test_configuration_that_is_damaged(drawn: Path, tmp_path: Path) -> None:
    """A file that cannot be read is not taken for none."""
    folder = convert(drawn, tmp_path / "kaggle")
    (folder / "config.json").write_text("{")
    assert completed(folder, registry.get("gemma-2b").preset) == folder


@ONE
def test_tokenizer_model_alone_begins_texts(drawn: Path, tmp_path: Path, cache: Path) -> None:
    """Kaggle has a SentencePiece model, which says nothing of ``<bos>``: it is added, as gemma_pytorch does."""
    import sentencepiece

    folder = convert(drawn, tmp_path / "kaggle")
    for path in folder.glob("tokenizer*.json"):
        path.unlink()
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(Path(__file__).read_text())
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        normalization_rule_name="identity",
        vocab_size=400,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
        minloglevel=2,
    )
    weights = resolve(registry.get("gemma-2b"), str(folder))
    assert weights.folder.parent == cache / "parity" / "weights" / "linked"
    config = replace(registry.get("gemma-2b").family.config_from(HFConfig.load(weights.folder)), vocab_size=500)
    inputs = tokenize(read_prompts("short"), weights.folder, config)
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    for prompt, given in zip(read_prompts("short").prompts, inputs.prompts, strict=True):
        if prompt.prompt_tokens is None:
            assert list(given.prompt) == [2, *pieces.encode(prompt.text)]
    assert identity(weights, inputs)["tokenizer"] == inputs.tokenizer_sha256


@ONE
def test_download_to_weights(drawn: Path, tmp_path: Path, kaggle: Kaggle, cache: Path) -> None:
    """``--weights kaggle`` is the preset's handle, pinned to a version, with the published values as configuration."""
    folder = convert(drawn, tmp_path / "made")
    kaggle.files = contents(folder)
    del kaggle.files["config.json"]
    weights = resolve(registry.get("gemma-2b"), "kaggle")
    assert (weights.kind, weights.label, weights.revision) == ("kaggle", "kaggle", f"{HANDLE}/{VERSION}")
    assert weights.folder.is_relative_to(cache)
    assert (weights.folder / "model.ckpt").read_bytes() == kaggle.files["model.ckpt"]
    named = resolve(registry.get("gemma-2b"), "kaggle@google/gemma/pyTorch/2b-it")
    assert named.revision == f"google/gemma/pyTorch/2b-it/{VERSION}"


# -- the ladder


@pytest.mark.parametrize("drawn", ["gemma-2-2b"], indirect=True)
def test_ladder_on_a_kaggle_folder(drawn: Path, tmp_path: Path) -> None:
    """The original reads the copy, the re-authored model the file itself, and they agree to within rounding."""
    folder = convert(drawn, tmp_path / "kaggle")
    report = tmp_path / "run.json"
    arguments = ["check", "gemma", "--weights", folder, "--rung", "reauthored", "--json", report]
    finished = subprocess.run(
        [sys.executable, "-m", "parity", *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    document = json.loads(report.read_text())
    assert finished.returncode == 0, (finished.stdout, finished.stderr)
    assert document["verdict"] == "PASS"
    assert document["weights"]["kind"] == "path"
    edges = {edge["candidate"]: edge for edge in document["edges"]}
    assert edges.keys() == {"original", "reauthored"}
    assert edges["reauthored"]["metrics"]["floor_ratio"] < 3
    assert not (folder / SINGLE).exists()
