"""The page counts what the results have; results survive being cut off."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import alarms_page
import pytest
from lines import Lines, read

LIMITS = {
    "port": {"floor_ratio": 16.0, "worst_position_ratio": 64.0},
    "rounding": {"floor_ratio": 3.0, "worst_position_ratio": 8.0},
    "fidelity": {"floor_ratio": 3.0, "worst_position_ratio": 8.0},
}
HEADER = {
    "seed": 0, "sha256": "0123456789abcdef", "kinds": {"numbers": 3, "licences": 2}, "limits": LIMITS,
    "environment": {
        "system": "Linux", "machine": "x86_64", "threads": 2, "python": "3.11.7", "packages": {"torch": "2.13.0"}
    },
}  # fmt: skip


def line(number: int, kind: str, ratio: float, verdict: str = "PASS", draws: int = 4) -> dict[str, object]:
    found = {
        "floor_ratio": ratio, "worst_position_ratio": 2 * ratio, "draws": draws, "verdict": verdict,
        "worst_position": {"prompt": str(number), "phase": "decode", "position": 3},
        "cause": None if verdict == "PASS" else "floor_ratio 3.5, limit 3",
    }  # fmt: skip
    sound = {**found, "floor_ratio": 0.5, "worst_position_ratio": 1.0, "verdict": "PASS", "cause": None}
    rungs = {"reauthored64": sound, "float": found, "dynamic_int8": sound}
    return {"number": number, "kind": kind, "source": "a.py", "positions": 20, "seconds": 5.0, "rungs": rungs}


LINES = [line(0, "numbers", 0.75), line(1, "licences", 0.25, draws=8), line(3, "numbers", 3.5, "FAIL")]


def test_the_page_counts_what_was_run_and_what_failed() -> None:
    text = alarms_page.page(HEADER, LINES)
    assert "**3 of 5 prompts, 1 false alarms.** 60 positions" in text
    assert "| float | `floor_ratio` | 3 | 0.750 |" in text
    assert "| numbers | 2 | 0.500 / 1.00 | 3.50 / 7.00 | 0.500 / 1.00 |" in text
    assert "- prompt 3, numbers, a.py: float: FAIL, floor_ratio 3.5, limit 3" in text
    assert "## Alarms" not in alarms_page.page(HEADER, LINES[:2])


def test_an_error_has_no_figures_and_is_an_alarm() -> None:
    broken = line(4, "licences", 0.5)
    broken["rungs"] = {**broken["rungs"], "float": {"verdict": "ERROR", "cause": "NaN"}}
    text = alarms_page.page(HEADER, [*LINES[:2], broken])
    assert "1 false alarms" in text
    assert "float: ERROR, NaN" in text


def test_the_drawing_has_a_row_for_each_kind_in_each_rung() -> None:
    root = ET.fromstring(alarms_page.drawing(HEADER, LINES))
    said = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert said.count("numbers") == said.count("all") == 3


def test_results_go_on_where_they_were_cut_off(tmp_path: Path) -> None:
    results = Lines(tmp_path / "sub" / "results.jsonl", {"seed": 0, "environment": {"python": "3"}})
    assert results.open() == []
    results.append({"number": 0})
    with results.path.open("a") as file:
        file.write('{"number": 1')
    assert Lines(results.path, {"seed": 0, "environment": {"python": "4"}}).open() == [{"number": 0}]
    results.append({"number": 2})
    assert read(results.path)[1] == [{"number": 0}, {"number": 2}]
    with pytest.raises(SystemExit, match="begun with seed 0, not 1"):
        Lines(results.path, {"seed": 1}).open()
