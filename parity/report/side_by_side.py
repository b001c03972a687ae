"""What every rung generated from one prompt, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.report.figures import shown


@dataclass(frozen=True)
class Generated:
    """What one rung said after a prompt: token ids and their text, or why it said nothing."""

    rung: str
    ids: tuple[int, ...] = ()
    text: str = ""
    cause: str | None = None


def render_generation(results: Sequence[Generated], console: Console) -> None:
    """A row for every rung: how many tokens match the original (the first row), and the text, coloured from where it
    differs. Control characters are shown, never sent to the terminal."""
    original, expected = results[0].ids, shown(results[0].text)
    table = Table()
    table.add_column("rung", no_wrap=True)
    table.add_column("same tokens", justify="right", no_wrap=True)
    table.add_column("text", overflow="fold")
    for result in results:
        if result.cause:
            table.add_row(Text(result.rung), Text("ERROR", style="bold red"), Text(shown(result.cause)))
            continue
        # Texts that ended are shorter than others.
        pairs = zip(original, result.ids, strict=False)
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(original), len(result.ids)))
        text = shown(result.text)
        alike = len(list(takewhile(bool, map(eq, expected, text))))
        # Other tokens of the same text, or a text that only ends early, are marked as a whole.
        alike = alike if alike < len(text) or original == result.ids else 0
        said = Text(text[:alike]).append(text[alike:], "yellow")
        table.add_row(Text(result.rung), f"{same}/{len(original)}", said)
    console.print(table)
