"""Checkpoint folders that are made once and kept in the user's cache, and how to tell that they are as they were made.

A folder's name says what it is made from, so that two versions of this project do not undo each other's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.authoring.checkpoint import weight_files
from models.errors import CheckpointError
from parity.files import sha256_of, unread_sha256

MANIFEST = "manifest.json"


def kept_folder(*names: str) -> Path:
    """A place for made checkpoints in the user's cache."""
    import platformdirs

    return platformdirs.user_cache_path("parity", appauthor=False).joinpath("weights", *names)


def seal(folder: Path, **facts: Any) -> str:
    """Write down what was made, and ``facts`` about it; the SHA-256 of the weights.

    Raises:
        CheckpointError: there are none.
    """
    sha256 = sha256_of(weight_files(folder))
    manifest = {"companions": _companions(folder), "sha256": sha256, **facts}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return sha256


def sealed(folder: Path) -> Mapping[str, Any] | None:
    """What ``seal`` wrote down, if the folder is there and every file in it is as it was made."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if manifest["companions"] != _companions(folder):
            return None
        return manifest if manifest["sha256"] == sha256_of(weight_files(folder), unread_sha256) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError):
        return None


def _companions(folder: Path) -> str:
    """SHA-256 of what lies beside the weights: config, index, tokenizer and its template."""
    beside = [path for pattern in ("*.json", "*.jinja") for path in folder.glob(pattern)]
    return sha256_of(path for path in beside if path.name != MANIFEST)
