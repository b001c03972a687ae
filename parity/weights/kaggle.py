"""Checkpoints on Kaggle: a version of a model variation, in the local folder that Kaggle's client keeps it in.

The client does the transfer, so its settings hold: ``KAGGLE_API_TOKEN``, ``KAGGLE_USERNAME`` and ``KAGGLE_KEY``,
``~/.kaggle/access_token`` and ``~/.kaggle/kaggle.json``, ``KAGGLEHUB_CACHE``. What is added here: it is quiet unless on
a terminal, and every failure says in one line what to do about it.
"""

from __future__ import annotations

import errno
import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from parity.errors import WeightsError

_ELSEWHERE = "or point --weights to a local folder"
_AGAIN = "try again, the download resumes with what is missing"
_LOG_IN = "make a token at https://www.kaggle.com/settings and keep it in ~/.kaggle/access_token or KAGGLE_API_TOKEN"
#: Parts of owner/model/framework/variation; one more is the version.
_PARTS = 4


def download(handle: str, on_progress: Callable[[str], None] | None = None) -> tuple[Path, str]:
    """The local folder of ``owner/model/framework/variation``, and that handle with its version.

    ``handle`` may name a version, ``.../VERSION``: one that is whole in the cache is returned without any request;
    without one, Kaggle is asked for the newest. After an interruption, the next call fetches what is missing.

    Raises:
        WeightsError: no such handle; no credentials, or refused ones; the licence is not accepted; no network; Kaggle
            is busy or down; the transfer broke off; the disk is full or the cache not writable.
    """
    report = on_progress or (lambda _: None)
    if len(parts := handle.split("/")) not in (_PARTS, _PARTS + 1) or not all(parts):
        raise WeightsError(f"{handle!r} is no Kaggle handle: name it as owner/model/framework/variation[/VERSION]")
    report(f"{handle} is asked for on Kaggle")
    try:
        with _quiet():
            import kagglehub

            logging.getLogger("kagglehub").setLevel(logging.ERROR)
            folder = Path(kagglehub.model_download(handle))
    except Exception as error:  # the client's own errors have no common base, and some are bare Exceptions
        raise WeightsError(f"{handle} {_explain(error, handle)}") from error
    versioned = f"{handle}/{folder.name}" if len(parts) == _PARTS and folder.name.isdigit() else handle
    report(f"{versioned} is in {folder}")
    return folder, versioned


@contextmanager
def _quiet() -> Iterator[None]:
    """What the client prints goes to standard error, where its progress bars are, and without a terminal nowhere."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    sink = sys.stderr if on_terminal else io.StringIO()
    with redirect_stdout(sink), redirect_stderr(sink):
        yield


def _explain(error: Exception, handle: str) -> str:
    """What happened and what to do, to be read after the handle."""
    import requests
    from kagglehub.exceptions import DataCorruptionError

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _explain_answer(error, error.response.status_code, handle)
    said = f"({type(error).__name__}: {error})"
    offline = f"connect to the network, name a version that is in the cache (kaggle@.../VERSION), {_ELSEWHERE}"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    larger = f"free some space, or set KAGGLEHUB_CACHE to a folder on a larger disk; then {_AGAIN}"
    causes: tuple[tuple[bool, str], ...] = (
        (full, f"does not fit on the disk {said}: {larger}"),
        (
            isinstance(error, requests.exceptions.ProxyError),
            f"cannot be had, the proxy refuses {said}: check HTTPS_PROXY, {_ELSEWHERE}",
        ),
        (
            isinstance(error, (requests.ConnectionError, requests.Timeout)),
            f"cannot be had, Kaggle cannot be reached {said}: {offline}",
        ),
        (
            isinstance(error, requests.exceptions.JSONDecodeError),
            f"cannot be had, what answers is not Kaggle {said}: check the network, {_ELSEWHERE}",
        ),
        (isinstance(error, (requests.RequestException, DataCorruptionError)), f"broke off {said}: {_AGAIN}"),
        (
            isinstance(error, OSError),
            f"cannot be kept in the cache {said}: make it writable, or set KAGGLEHUB_CACHE to a folder that is",
        ),
        # A framework that Kaggle does not have, or a credentials file out of order.
        (isinstance(error, ValueError), f"cannot be asked for {said}: check the handle, or {_LOG_IN}"),
    )
    return next((text for fits, text in causes if fits), f"cannot be had {said}: {_AGAIN}, {_ELSEWHERE}")


def _explain_answer(error: Exception, status: int, handle: str) -> str:
    """For what Kaggle answered. A licence that is not accepted is a 403, whoever asks."""
    from kagglehub.config import get_kaggle_credentials

    page = f"https://www.kaggle.com/models/{'/'.join(handle.split('/')[:_PARTS])}"
    anonymous = status in (401, 403) and get_kaggle_credentials() is None
    answers: tuple[tuple[bool, str], ...] = (
        (anonymous, f"needs an account that has accepted its licence ({status}): accept it at {page}, {_LOG_IN}"),
        (status == 401, f"cannot be had, Kaggle does not accept the token ({status}): {_LOG_IN}"),
        (
            status == 403,
            f"is refused to this account ({status}): accept the licence at {page} with the account of the token",
        ),
        (status == 404, f"is not on Kaggle ({status}): choose a variation and version that {page} has"),
        (status == 429, f"is refused, Kaggle has had too many requests ({status}): wait some minutes and {_AGAIN}"),
    )
    trouble = f"cannot be had, Kaggle is in trouble ({status}: {error}): {_AGAIN}"
    return next((text for fits, text in answers if fits), trouble)
