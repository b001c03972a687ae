"""The processes of a run that was started in a session of its own, as the system's table in /proc has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """A row of the process table."""

    pid: int
    parent: int
    session: int
    started: int
    state: str


def session(leader: int) -> list[Process]:
    """The living processes of the session that ``leader`` started, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        row = Process(int(path.parent.name), int(fields[1]), int(fields[3]), int(fields[19]), fields[0])
        if row.session == leader and row.state != "Z":
            found.append(row)
    return sorted(found, key=lambda row: (row.started, row.pid))


def jobs(leader: int) -> list[Process]:
    """The jobs of a run: grandchildren, forked from the server."""
    rows = session(leader)
    return [row for row in rows if row.parent in {other.pid for other in rows if other.parent == leader}]


def until(condition: Callable[[], Any], seconds: float) -> Any:
    """The first true value of ``condition``, or what it is when time is up."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value
