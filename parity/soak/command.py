"""``parity soak``: which draws, how far they are, what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from parity import environment
from parity.compare.verdict import Verdict
from parity.files import scratch_folder, writable
from parity.soak.draws import draws
from parity.soak.report import summary_table, write_page
from parity.soak.results import SCHEMA_VERSION, Outcome, Results, read
from parity.soak.run import soak
from parity.soak.variants import variants


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What to run. Without ``presets`` the smallest of every architecture; ``draw`` is the only one, if given."""

    seed: int
    draws: int
    draw: int | None = None
    presets: tuple[str, ...] = ()
    files_every: int
    workers: int | None = None
    output: Path | None = None
    failures: Path
    markdown: Path | None = None


def run(asked: Soak, console: Console, live: Console) -> bool:
    """Run the draws, print what came of them, and say whether every one passed.

    Raises:
        UsageError: a file of other draws, or a place that cannot be written.
    """
    presets = asked.presets or tuple(variants())
    numbers = range(asked.draws) if asked.draw is None else [asked.draw]
    planned = list(draws(asked.seed, presets, numbers, asked.files_every))
    for path in filter(None, (asked.markdown, asked.failures.parent / "draw.json")):
        writable(path)
    header = {
        "schema_version": SCHEMA_VERSION,
        "seed": asked.seed,
        "presets": list(presets),
        "files_every": asked.files_every,
        "environment": environment.describe(),
    }
    with scratch_folder() as scratch:
        results = Results(asked.output or scratch / "draws.jsonl", header)
        with _showing(live, len(planned)) as on_finished:
            soak(planned, results, asked.failures, asked.workers or environment.threads(), on_finished)
        header, outcomes = read(results.path)
    wanted = {draw.number: draw for draw in planned}
    outcomes = [outcome for outcome in outcomes if outcome.number in wanted]
    console.print(summary_table(outcomes), markup=False)
    failed = [outcome for outcome in outcomes if outcome.verdict != Verdict.PASS]
    for outcome in failed:
        console.print(f"{outcome.verdict} {outcome.preset}: {outcome.cause}", markup=False, soft_wrap=True)
        console.print(f"  again: {wanted[outcome.number].command}", markup=False, soft_wrap=True)
    if asked.markdown:
        write_page(asked.markdown, header, outcomes)
    console.print(f"{len(outcomes)} draws, {len(failed)} false alarms", markup=False)
    return not failed


@contextmanager
def _showing(console: Console, total: int) -> Iterator[Callable[[Outcome], None]]:
    """A live bar on a terminal; elsewhere a line for every hundredth part."""
    if not console.is_terminal:
        done: list[Outcome] = []

        def say(outcome: Outcome) -> None:
            done.append(outcome)
            if outcome.verdict != Verdict.PASS or len(done) % max(1, total // 100) == 0:
                console.print(f"{len(done)} draws; {outcome.verdict} {outcome.preset}", markup=False, style="dim")

        yield say
        return
    described = TextColumn("{task.description}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), described)
    # Drawn only when a draw has finished: while a process starts, the terminal is not ours to write to.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task, alarms = progress.add_task("no false alarms", total=total), 0

        def show(outcome: Outcome) -> None:
            nonlocal alarms
            alarms += outcome.verdict != Verdict.PASS
            progress.update(task, advance=1, description=f"{alarms or 'no'} false alarms", refresh=True)

        yield show
