"""The file of finished draws: JSON Lines, one header and one line a draw, that survives being cut off anywhere."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parity.errors import UsageError
from parity.files import writable

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a draw: ``verdict``, the edges' figures, and the ``cause`` of anything but a PASS."""

    number: int
    preset: str
    family: str
    verdict: str
    seconds: float
    prompts: int = 0
    positions: int = 0
    files: bool = False
    threads: Mapping[str, int] = field(default_factory=dict)
    dimensions: Mapping[str, Any] = field(default_factory=dict)
    edges: tuple[Mapping[str, Any], ...] = ()
    cause: str | None = None


@dataclass(frozen=True)
class Results:
    """``header`` says what was asked for: a file is only ever continued by the same."""

    path: Path
    header: Mapping[str, Any]

    def open(self) -> list[Outcome]:
        """What is finished already. Makes the file, or takes off a last line that was not written to its end.

        Raises:
            UsageError: the file is of another run, or no file of results.
        """
        written = self.path.read_bytes() if self.path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if not whole:
            begun = (json.dumps(dict(self.header)) + "\n").encode()
            if not begun.startswith(written):
                raise UsageError(f"{self.path} is no file of finished draws; name another one")
            self.path.write_bytes(begun)
        header, outcomes = read(self.path)
        asked = {key: value for key, value in self.header.items() if key != "environment"}
        if different := [key for key in asked if header.get(key) != asked[key]]:
            raise UsageError(
                f"{self.path} was begun with {different[0]} {header.get(different[0])}, not {asked[different[0]]}; "
                "ask for the same, or name another file"
            )
        if whole and whole != written:
            os.truncate(self.path, len(whole))
        return outcomes

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else may go on with the file until the block ends.

        Raises:
            UsageError: somebody does, or it cannot be written.
        """
        writable(self.path)
        with self.path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another run is writing {self.path}; wait for it, or name another file") from None
            yield

    def append(self, outcome: Outcome) -> None:
        """One write at the end of the file, whoever else writes there."""
        line = (json.dumps(asdict(outcome)) + "\n").encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line)
            os.fsync(file)
        finally:
            os.close(file)

    def since(self, position: int) -> tuple[list[Outcome], int]:
        """Draws whose lines begin beyond so many bytes of the file, as they finished, and where the last one ends."""
        with self.path.open("rb") as file:
            file.seek(position)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]
        return [_outcome(json.loads(line)) for line in whole.splitlines()], position + len(whole)


def _outcome(line: dict[str, Any]) -> Outcome:
    return Outcome(**{**line, "edges": tuple(line["edges"])})


def read(path: Path) -> tuple[dict[str, Any], list[Outcome]]:
    """The header and the finished draws, by number. A last line that is still being written does not count.

    Raises:
        UsageError: there is no such file, or it is not of this kind.
    """
    try:
        written = path.read_text(encoding="utf-8")
        header, *lines = [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]
        # A draw is the same whenever it is run: if two processes ran it, one of them counts.
        outcomes = {line["number"]: _outcome(line) for line in lines}.values()
    except FileNotFoundError:
        raise UsageError(f"{path} is no file; name one that `parity soak -o` wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no file of finished draws ({error}); name another one") from None
    if not isinstance(header, dict) or header.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{path} was written by another version; name another file")
    return header, sorted(outcomes, key=lambda outcome: outcome.number)
