"""Published checkpoints: from the Hugging Face Hub, or from its cache, to a local folder pinned to a commit.

The hub's own client does the transfer, so its environment variables hold: ``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HUB_OFFLINE`` and the rest. What is added here: nothing but configs, tokenizers and safetensors is asked for (code
only where a person trusts it), a pinned commit that is already here costs no request, and every failure says in one
line what to do about it.
"""

from __future__ import annotations

import errno
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from parity.errors import WeightsError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


@dataclass(frozen=True)
class Wanted:
    """What is asked for of a repository: files by ``patterns``, one of them ``needed``; ``lacking`` is said without."""

    patterns: tuple[str, ...]
    needed: re.Pattern[str]
    lacking: str

    def enough(self, files: Iterable[str]) -> bool:
        """Whether a repository or folder with these files has what is needed."""
        return any(self.needed.fullmatch(file) for file in files)


# Closed lists: pickles (.bin, .pt, .pth, .h5, .ckpt) and code (.py) are kept out by not being on them.
_TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*.json",
    "chat_template*.jinja",
)
_CHECKPOINT_FILES = (
    *_TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
)
_SAFETENSORS = re.compile(r"[^/]+\.safetensors")
_NO_SAFETENSORS = "has no safetensors files; only safetensors checkpoints are read"
CHECKPOINT = Wanted(_CHECKPOINT_FILES, _SAFETENSORS, _NO_SAFETENSORS)
CHECKPOINT_AND_CODE = Wanted((*_CHECKPOINT_FILES, "*.py"), _SAFETENSORS, _NO_SAFETENSORS)
TOKENIZER = Wanted(_TOKENIZER_FILES, re.compile(r"tokenizer\.(json|model)|vocab\.json"), "has no tokenizer")
# The hub's `*` also matches `/`: without this, `onnx/model.safetensors` and other copies would come along.
_UNWANTED = ["*/*"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ELSEWHERE = "or point --weights to a local folder"
_AGAIN = "try again, the download resumes with what is missing"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def download(
    repo: str, revision: str, wanted: Wanted = CHECKPOINT, *, on_progress: Callable[[str], None] | None = None
) -> tuple[Path, str]:
    """The local snapshot folder of a repository at a revision, and the commit hash the revision stands for.

    ``revision`` is a branch, a tag or a commit; a full commit hash that is whole in the cache is returned without any
    request. When the hub cannot be reached or refuses, a whole snapshot in the cache is used. After an interruption,
    the next call fetches the files that are not complete. ``on_progress`` gets a line per step; the hub's own
    progress bars are drawn only on a terminal.

    Raises:
        WeightsError: the licence is not accepted; no such repository or revision, or not for this token; no network
            and no whole snapshot in the cache; the hub is busy or down; the transfer broke off; the disk is full or
            the cache not writable; nothing of what is needed in the repository.
    """
    import httpx2
    from huggingface_hub.errors import OIDCError, RevisionNotFoundError

    report = on_progress or (lambda _: None)
    try:
        if _COMMIT.fullmatch(revision) and (folder := _cached(repo, revision, wanted, surely=True)):
            report(f"{repo} at {revision} is in the cache")
        else:
            folder = _fetch(repo, revision, wanted, report)
    # ValueError: a bad name, or an answer that is not the hub's JSON. RuntimeError: most failures of the hub's chunk
    # store (hf_xet), which has no types of its own. UserWarning: the disk is too small, see _fetch.
    except (httpx2.HTTPError, httpx2.InvalidURL, OIDCError, OSError, RuntimeError, ValueError, UserWarning) as error:
        cause = _root(error)
        # A revision that the hub denies is wrong whatever the cache holds.
        if isinstance(cause, RevisionNotFoundError) or not (folder := _cached(repo, revision, wanted, surely=False)):
            raise WeightsError(_one_line(f"{repo} at {revision} {_explain(cause, repo)}")) from error
        report(_one_line(f"{repo} at {revision} is taken from the cache, the hub gave {type(cause).__name__}: {cause}"))
    return folder, folder.name


def _fetch(repo: str, revision: str, wanted: Wanted, report: Callable[[str], None]) -> Path:
    """Bring every wanted file into the cache; what is there already is not asked for again."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    # Asked first, because snapshot_download waits without limit for this answer when the revision is a branch, and
    # through half a minute of retries when it is a commit; and because it tells whether there is anything to read.
    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    if not wanted.enough(files):
        raise WeightsError(f"{repo} at {revision} {wanted.lacking}: take a revision that has them, {_ELSEWHERE}")
    report(f"{repo} at {revision} is commit {info.sha}; downloading what the cache lacks")
    with warnings.catch_warnings():
        # The client merely warns that a file is larger than the free space, and then fills the disk.
        warnings.filterwarnings("error", message="Not enough free disk space", category=UserWarning)
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(wanted.patterns),
            ignore_patterns=_UNWANTED,
            tqdm_class=None if _on_terminal() else cast("type[tqdm]", functools.partial(tqdm, disable=True)),
        )
    report(f"{repo} at {revision} is in {folder}")
    return Path(folder)


def _cached(repo: str, revision: str, wanted: Wanted, *, surely: bool) -> Path | None:
    """The snapshot folder if it is whole in the cache, without any request.

    The client knows what a snapshot should hold when it listed the repository itself. Other snapshots come without a
    listing: then config and weights must be there, and for ``surely`` (the hub can still be asked) a tokenizer too.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(wanted.patterns),
                ignore_patterns=_UNWANTED,
                local_files_only=True,
            )
        )
        get_cached_repo_tree(repo, revision=folder.name)
    except CachedRepoTreeNotFoundError:
        tokenizer = TOKENIZER.enough(path.name for path in folder.iterdir())
        whole = tokenizer if wanted == TOKENIZER else _has_config_and_weights(folder) and (tokenizer or not surely)
        return folder if whole else None
    except (OSError, HFValidationError):
        # Not there, not whole, or not readable: for the caller all the same, and the download will say it better.
        return None
    return folder if wanted.enough(path.name for path in folder.iterdir()) else None


def _has_config_and_weights(folder: Path) -> bool:
    from models.authoring.checkpoint import weight_files
    from models.errors import CheckpointError

    try:
        return all(path.is_file() for path in (folder / "config.json", *weight_files(folder)))
    except CheckpointError:
        return False  # no weights, or a damaged index, which vouches for nothing


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _root(error: BaseException) -> BaseException:
    """What went wrong first: the client wraps it in "not found locally" when it could not fall back on the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _explain(error: BaseException, repo: str) -> str:
    """What happened and what to do, to be read after "{repo} at {revision}"."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OIDCError

    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, repo)
    if _is_disk_full(error):
        larger = f"free some space, or set HF_HOME to a larger disk than that of {constants.HF_HUB_CACHE}"
        return f"does not fit on the disk {_detail(error)}: {larger}; then {_AGAIN}"
    if isinstance(error, HFValidationError):
        return f"cannot be had {_detail(error)}: name the repository as owner/name, {_ELSEWHERE}"
    if isinstance(error, OIDCError):
        return f"cannot be had, no token for HF_OIDC_RESOURCE {_detail(error)}: unset it and {_LOG_IN}"
    if isinstance(error, OSError) and error.errno is not None:
        writable = f"make {constants.HF_HUB_CACHE} writable, or set HF_HOME to a folder that is"
        return f"cannot be kept in the cache {_detail(error)}: {writable}"
    return _explain_silence(error)


def _explain_answer(error: HfHubHTTPError, repo: str) -> str:
    """For what the hub answered."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = HfApi().endpoint
    status = error.response.status_code
    said = f"({status}{f': {error.server_message}' if error.server_message else ''})"
    answers: tuple[tuple[bool, str], ...] = (
        # A gated repository also counts as one that is not found, so it comes first.
        (isinstance(error, GatedRepoError), f"is gated: accept the licence at {hub}/{repo} and {_LOG_IN}"),
        (
            isinstance(error, RepositoryNotFoundError),
            f"is not on {hub}, or it is private: check the name; if it is private, {_LOG_IN}",
        ),
        (
            isinstance(error, RevisionNotFoundError),
            f"does not exist, the repository has no such revision: choose one that {hub}/{repo} has",
        ),
        (isinstance(error, DisabledRepoError), f"has been disabled on {hub}: take another repository, {_ELSEWHERE}"),
        (status in (401, 403), f"is refused to this token {said}: check its permissions, then {_LOG_IN}"),
        (status == 429, f"is refused, {hub} has had too many requests {said}: wait some minutes and {_AGAIN}"),
        (status >= 500, f"cannot be had, {hub} is in trouble {said}: {_AGAIN}"),
    )
    return next((text for fits, text in answers if fits), f"cannot be had, {hub} refuses {said}: {_AGAIN}")


def _explain_silence(error: BaseException) -> str:
    """For want of an answer: no network, or a transfer that broke off."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError, OfflineModeIsEnabled

    hub = HfApi().endpoint
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return f"is not whole in the cache and HF_HUB_OFFLINE forbids to download: unset it, {_ELSEWHERE}"
    if isinstance(error, httpx2.ProxyError):
        return f"cannot be had, the proxy refuses {_detail(error)}: check HTTPS_PROXY, {_ELSEWHERE}"
    if isinstance(error, (httpx2.ConnectError, httpx2.TimeoutException)):
        lacking = f"is not whole in the cache and {hub} cannot be reached {_detail(error)}"
        return f"{lacking}: connect to the network, {_ELSEWHERE}"
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL, FileMetadataError, ValueError)):
        return f"cannot be had, {hub} does not answer like the hub {_detail(error)}: check HF_ENDPOINT and the network"
    return f"broke off {_detail(error)}: {_AGAIN}"


def _is_disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # The chunk store's errors carry no number, and the warning that _fetch makes an error has only its text.
    return full or any(words in str(error) for words in ("No space left on device", "Not enough free disk space"))


def _detail(error: BaseException) -> str:
    return f"({type(error).__name__}: {error})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
