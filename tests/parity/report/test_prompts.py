"""What a report says of single prompts: rows, charts by position, generations side by side."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_reports import INT8, POSITIONS, broken_port, trained_report

from parity.report.charts import COLUMNS, LINES, ByPosition
from parity.report.html import to_html
from parity.report.markdown import to_markdown
from parity.report.prompts import DRAWN, PROMPT_COLUMNS, PromptPage, prompts_of

ANY_VALUE = st.none() | st.floats() | st.integers() | st.booleans() | st.text(max_size=3)


def pages(**changed: Any) -> dict[str, PromptPage]:
    return {page.name: page for page in prompts_of(trained_report(**changed), drawn=True)}


def test_every_prompt_has_its_figures_under_every_question() -> None:
    """In the order of the ladder, spelled as everywhere; what a question does not have is blank."""
    found = pages()
    assert list(found) == list(POSITIONS)
    page = found["repeated"]
    assert (page.positions, page.times) == ("25", "54.2")
    lines = {line.name: dict(zip((name for name, _ in PROMPT_COLUMNS), line.cells, strict=True)) for line in page.lines}
    assert list(lines)[:2] == ["original", "reauthored64"]
    assert lines["float"]["floor worst"] == "2.10"
    assert lines["reauthored64"]["rel L2"] == "1.1e-13"
    quality = lines["dynamic_int8 quality"]
    assert (quality["KL mean"], quality["top-1 clear"], quality["floor typical"]) == ("2.07", "87.3%", "")


def test_prompts_that_stand_out_say_why() -> None:
    """Ill-conditioned ones, and those that lose far more than the typical one."""
    found = {name: page.stands_out for name, page in pages().items() if page.stands_out}
    outliers = ("outlier of dynamic_int8 quality: KL 2.07", "outlier of fp16 quality: KL 2.1e-4")
    assert found == {"repeated": ("ill-conditioned", *outliers)}


def test_a_position_says_its_token_and_every_figure() -> None:
    """KL of what recipes cost; the distance in units of the floor of what should be sound, and its limit."""
    page = pages()["english"]
    assert page.kl is not None
    assert page.ratio is not None
    assert [line.name for line in page.kl.lines] == ["dynamic_int8 quality", "fp16 quality"]
    assert page.kl.words[3].startswith('position 3, after " fox": dynamic_int8 quality 0.1')
    assert page.kl.words[9].startswith('position 9, after "⏎": dynamic_int8 quality ')
    assert len(page.kl.words) == POSITIONS["english"]
    assert page.kl.limit is None
    assert [line.name for line in page.ratio.lines][:4] == ["original", "reauthored64", "reauthored", "float"]
    assert page.ratio.limit == pytest.approx(0.968, abs=1e-3)
    source = to_html([trained_report()])
    assert "position 3, after &#34; fox&#34;: dynamic_int8 quality 0.1" in source
    assert pages(texts={})["english"].kl.words[3].startswith("position 3: dynamic")  # type: ignore[union-attr]


def test_of_a_long_prompt_the_worst_of_neighbours_is_drawn() -> None:
    """So that one wrong position among thousands is seen."""
    values = [0.001] * 5000
    values[4321] = 3.0
    chart = ByPosition.of({"float": values}, [])
    assert chart is not None
    assert len(chart.words) <= COLUMNS
    (line,) = chart.lines
    assert [height for height in line.heights if height and height > 0.5]
    (words,) = [words for words in chart.words if "float 3.00" in words]
    first, last = map(int, re.findall(r"positions (\d+) to (\d+)", words)[0])
    assert first <= 4321 <= last


def test_what_is_far_below_the_noise_does_not_stretch_the_axis() -> None:
    """A position that happens to be exact is one at the bottom."""
    chart = ByPosition.of({"float": [1.0, 1e-9, 0.0, 0.5]}, [], limit=8.0, bottom=0.01)
    assert chart is not None
    assert chart.labels == ["10", "1", "0.1", "0.01"]
    assert list(chart.lines[0].heights)[1:3] == [0.0, 0.0]
    assert chart.words[1] == "position 1: float 1.0e-9"


@given(st.dictionaries(st.text(max_size=3), st.lists(ANY_VALUE, max_size=300), max_size=10), ANY_VALUE)
@settings(deadline=None)
def test_whatever_is_drawn_is_inside(values: dict[str, list[object]], limit: object) -> None:
    """Infinite, negative, no number at all: heights are in [0, 1], labels are powers of ten from top to bottom."""
    chart = ByPosition.of(values, ["a"] * 10, limit if isinstance(limit, float) and 0 < limit < 1e300 else None)
    if chart is None:
        return
    assert len(chart.lines) <= LINES
    assert 2 <= len(chart.labels) <= 5
    for line in chart.lines:
        assert len(line.heights) == len(chart.words)
        assert all(height is None or 0 <= height <= 1 for height in line.heights)


def test_generations_stand_side_by_side_and_the_first_difference_is_marked() -> None:
    """Those that said the same together; a defect is told from any other choice."""
    reference, same, tie, changed = pages()["repeated"].said
    assert reference.rungs == ("reference",)
    assert "".join(token.text for token in reference.tokens) == "The quick brown fox jumps over the lazy"
    assert same.same
    assert same.rungs == ("original", "reauthored", "fp16")
    assert tie.rungs == ("float",)
    assert [(token.text, token.first) for token in changed.tokens if token.differs] == [
        (" then", True),
        (" then", False),
    ]
    source = to_html([trained_report()])
    assert (
        'The<mark class="other first"> then</mark> brown fox jumps<mark class="other"> then</mark> the lazy' in source
    )
    assert 'The quick<mark class="defect first"> then</mark> fox' in to_html([broken_port()])
    unknown = pages(texts={})["repeated"].said
    assert "".join(token.text for token in unknown[-1].tokens).startswith("⟨0⟩⟨11⟩⟨2⟩")
    assert pages(prompts_said={})["repeated"].said == ()


def test_many_prompts_are_all_listed_and_the_outstanding_ones_drawn() -> None:
    """A page stays one that a browser opens."""
    edges = [
        replace(edge, prompts={f"{name} {i}": row for i in range(10) for name, row in edge.prompts.items()})
        for edge in trained_report().edges
    ]
    edges[-1] = replace(edges[-1], metrics={**edges[-1].metrics, "outliers": {"question 9": 1.0}})
    found = pages(edges=edges)
    assert len(found) == 70
    assert sum(page.kl is not None for page in found.values()) == DRAWN
    assert found["question 9"].kl is not None


def test_markdown_has_prompts_when_asked() -> None:
    """A row for every prompt and question."""
    assert "Prompt by prompt" not in to_markdown([trained_report()])
    text = to_markdown([trained_report()], prompts=True)
    assert "<summary>Prompt by prompt</summary>" in text
    assert "| `repeated` | 54.2 | `dynamic_int8 quality` |  |  | 0.0660 | 2.07 | 8.28 | 87.3% |" in text
    assert text.count("`dynamic_int8 quality` |") == len(INT8)
    assert "Prompt by prompt" not in to_markdown([trained_report(edges=[])], prompts=True)
