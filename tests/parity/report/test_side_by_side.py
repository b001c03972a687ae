"""What rungs said, side by side: how far each went along with the original, also where a text ended early."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from parity.report.side_by_side import Generated, render_generation


@pytest.mark.parametrize(
    ("original", "rung", "same"),
    [
        ((1, 2, 3), (1, 2, 3), "3/3"),
        ((1, 2, 3), (1, 5, 3), "1/3"),
        ((1, 2, 3), (1, 2), "2/3"),  # it ended the text where the original goes on
        ((1, 2), (1, 2, 3), "2/2"),
        ((), (1,), "0/0"),
    ],
)
def test_tokens_that_are_the_same(original: tuple[int, ...], rung: tuple[int, ...], same: str) -> None:
    """Up to the first difference; a text of another length is marked even where nothing else differs."""
    file = io.StringIO()
    results = [Generated("original", original, "text"), Generated("float", rung, "text")]
    render_generation(results, Console(file=file, width=80, force_terminal=True, color_system="truecolor"))
    (row,) = [line for line in file.getvalue().splitlines() if "float" in line]
    assert same in row
    assert ("\x1b[33m" in row) == (original != rung)


def test_a_text_is_marked_from_where_it_differs() -> None:
    """What comes before is as the original's."""
    file = io.StringIO()
    results = [Generated("original", (1, 2), "once upon a time"), Generated("float", (1, 3), "once upon the hill")]
    render_generation(results, Console(file=file, width=80, force_terminal=True, color_system="truecolor"))
    assert "once upon \x1b[33mthe hill" in file.getvalue()
