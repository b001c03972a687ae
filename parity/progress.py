"""Telling a person what is being done and for how long, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from parity import isolated


class Reporter:
    """Shows a live line with elapsed time while a step runs on a terminal, and one plain line after it elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    @contextmanager
    def step(self, what: str) -> Iterator[isolated.Progress | None]:
        """Announce ``what``; the value is a callback for how far it is."""
        if self.quiet:
            yield None
            return
        began = time.perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=None)

            def update(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            yield update
        self.console.print(f"{what}  {time.perf_counter() - began:.1f} s", markup=False, highlight=False, style="dim")
