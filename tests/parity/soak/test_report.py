"""The page and the drawing say what the outcomes say."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import numpy as np

from parity.compare.limits import ROUNDING_LIMITS
from parity.soak.report import Spread, drawing, page, ratios
from parity.soak.results import Outcome

SVG = "{http://www.w3.org/2000/svg}"
HEADER = {
    "seed": 4,
    "presets": ["a", "b"],
    "files_every": 20,
    "environment": {
        "system": "Linux", "machine": "x86_64", "threads": 2, "python": "3.11.7", "packages": {"torch": "2.13.0"}
    },
}  # fmt: skip


def edge(rung: str, ratio: float, output: str = "logits", **more: object) -> dict[str, object]:
    return {
        "candidate": rung, "output": output, "verdict": "PASS", "floor_ratio": ratio, "worst_position_ratio": 2 * ratio,
        **more,
    }  # fmt: skip


def cost(loss: float) -> dict[str, object]:
    return {
        "candidate": "dynamic_int8", "output": "logits", "question": "quality", "verdict": "PASS", "kl_typical": loss,
        "flips": 0.05,
    }  # fmt: skip


def outcomes() -> list[Outcome]:
    found = []
    for number in range(20):
        edges = [edge("original", 1.0), edge("reauthored64", 0.3), edge("reauthored", 1 + number / 10)]
        files = number % 5 == 0
        if files:
            edges += [edge("float", 2 + number / 10), edge("dynamic_int8", 0.5, question="fidelity"), cost(0.003)]
        preset, family = (("a", "f"), ("b", "g"))[number % 2]
        made = Outcome(number=number, preset=preset, family=family, verdict="PASS", seconds=0.5, prompts=3,
                       positions=50, files=files, dimensions={"num_hidden_layers": 2}, edges=tuple(edges))  # fmt: skip
        found.append(made)
    return found


def test_the_page_has_the_counts_the_spread_and_the_worst() -> None:
    """Figures by hand."""
    text = page(HEADER, outcomes(), "soak.svg")
    assert "**20 draws, 0 false alarms.** 4 of the draws converted and ran files.\n1,000 positions in 60" in text
    assert "`parity soak --draws 20 --seed 4 --files-every 20 --model a --model b --markdown docs/soak.md`" in text
    assert "| reauthored | logits | `floor_ratio` | 20 | 1.00 | 1.95 | 2.80 | 2.88 | 2.90 | 3.00 |" in text
    assert "| reauthored64 | logits | `floor_ratio` | 20 | 0.300 | 0.300 | 0.300 | 0.300 | 0.300 | 16.0 |" in text
    assert "| dynamic_int8 | logits | fidelity | `floor_ratio` | 4 | 0.500 | 0.500 | 0.500 | ≤ 3 |" in text
    assert "| dynamic_int8 | logits | quality | `kl_typical` | 4 | 0.00300 | 0.00300 | 0.00300 | ≤ 0.1 |" in text
    assert "| dynamic_int8 | logits | quality | `flips` | 4 | 5.0% | 5.0% | 5.0% | ≤ 25% |" in text
    assert "| 15 | b | float | logits |" in text  # the nearest to a limit
    assert "![floor_ratio by rung and preset](soak.svg)" in text
    assert "torch 2.13.0" in text
    assert "## False alarms" not in text


def test_ratios_are_of_one_rung_and_output() -> None:
    """An encoder's are apart from the logits'."""
    made = Outcome(number=0, preset="a", family="f", verdict="PASS", seconds=1.0,
                   edges=(edge("float", 1.5, "encoder"), edge("float", 2.5)))  # fmt: skip
    assert ratios([made], "float", "floor_ratio", "encoder") == [1.5]
    assert ratios([made], "float", "floor_ratio") == [1.5, 2.5]
    assert ratios([made], "reauthored", "floor_ratio") == []


def test_a_spread_is_the_quantiles() -> None:
    """Of a hundred and one numbers they are numbers of them."""
    spread = Spread.of(np.arange(101.0).tolist())
    assert (spread.count, spread.least, spread.low, spread.middle) == (101, 0.0, 5.0, 50.0)
    assert (spread.high, spread.p99, spread.most) == (95.0, 99.0, 100.0)


def test_the_drawing_shows_every_preset_on_both_rungs() -> None:
    """A row for all and one for each preset; dots in the order of the medians; the limit right of everything."""
    drawn = drawing(outcomes())
    assert drawn.endswith("</svg>\n")
    root = ET.fromstring(drawn)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"all", "a", "b"} <= set(texts)
    assert texts.count("limit") == 2
    assert any(str(text).startswith("reauthored, 20 edges") for text in texts)
    dots = [float(element.attrib["cx"]) for element in root.iter(f"{SVG}circle")]
    assert len(dots) == 6
    assert dots[1] < dots[2]  # a has the even draws, b the odd ones
    limits = [float(e.attrib["d"].split()[1]) for e in root.iter(f"{SVG}path") if e.attrib["stroke"] == "#cf222e"]
    bound = next(limit.most for limit in ROUNDING_LIMITS if limit.metric == "floor_ratio")
    step = (limits[0] - dots[0]) / (math.log2(bound) - math.log2(1.95))  # one factor of two
    assert limits[0] > max(dots[:3])
    assert step > 20


def test_a_run_without_files_is_drawn_too() -> None:
    """The panel of the files is empty."""
    made = [outcome for outcome in outcomes() if not outcome.files]
    root = ET.fromstring(drawing(made))
    assert len(list(root.iter(f"{SVG}circle"))) == 3
    assert "Quantized" not in page(HEADER, made, "soak.svg")
