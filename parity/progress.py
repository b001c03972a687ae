"""Telling a person what is being done and for how long, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from parity import isolated

#: Steps shorter than this, in seconds, leave no line behind where no live line can be shown.
WORTH_A_LINE = 2.0


class Reporter:
    """A live line with elapsed time while a step runs on a terminal; elsewhere a plain line after a long one."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def note(self, text: str) -> None:
        """One plain line, at once."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, style="dim")

    @contextmanager
    def step(self, what: str) -> Iterator[isolated.Progress | None]:
        """Announce ``what``; the value is a callback for how far it is."""
        if self.quiet:
            yield None
            return
        began = time.perf_counter()
        if self.console.is_terminal:
            what_column = TextColumn("{task.description}", markup=False)
            columns = (SpinnerColumn(), what_column, BarColumn(), TimeElapsedColumn())
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(what, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=total or None)
        else:
            yield None
        took = time.perf_counter() - began
        if self.console.is_terminal or took >= WORTH_A_LINE:
            self.note(f"{what}  {took:.1f} s")
