"""docs/false_alarms.md and its drawing, from what ``false_alarms.py`` has found."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from page import ROOT

from parity.files import write_whole
from parity.report.markdown import prose
from parity.report.templates import template
from parity.spelling import figure

Line = Mapping[str, Any]

METRICS = {"floor_ratio": "typical", "worst_position_ratio": "worst"}
#: Prompts shown as the worst.
WORST = 5
ALL = "all"
#: Powers of two at the ends of the axis, and bars to each.
FIRST, LAST, BARS = -4, 7, 4

ABOUT = """\
Each prompt is a set of its own: three rungs of smollm2-135m with trained weights (`--weights sample`) are judged on it
alone, as `parity check` judges them, with more draws of the noise floor where a verdict is open. The exact port in
float64 is held against the original in float64, the float `.tflite` against that too, the `dynamic_int8` file against
PyTorch with the numbers that it stores. The files have a prefill of 16 and a cache of 576; 8 tokens of every text are
forced through the cache one by one, after the rest of it was prefilled. All three are right, so anything but a PASS is
a false alarm.
"""
TEXTS = """\
The texts are drawn from a seed out of what every machine with this project has: Python's documentation strings and
sources, licences of installed packages, tables of numbers, other scripts (Unicode's letters with and without their
names, alphabets of Python's codecs), words again and again, random ids, one token, and a few of 500 tokens. All others
have 12 to 40.
"""


def write(header: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """The page and its drawing."""
    lines = sorted({line["number"]: line for line in lines}.values(), key=lambda line: int(line["number"]))
    write_whole(ROOT / "docs" / "false_alarms.svg", drawing(header, lines))
    write_whole(ROOT / "docs" / "false_alarms.md", page(header, lines))


def page(header: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """Everything as Markdown."""
    parts = (_head(header, lines), _rungs(header, lines), _kinds(lines), _nearest(header, lines), _alarms(lines))
    parts = (*parts, _environment(header, lines))
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"


def _head(header: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    planned = sum(header["kinds"].values())
    alarms = sum(bool(_failed(line)) for line in lines)
    seconds = statistics.median(line["seconds"] for line in lines)
    positions = sum(line["positions"] for line in lines)
    yield "# False alarms on real text"
    yield ""
    yield "Written by `python benchmarks/false_alarms.py`, which goes on where it was ended (`--page` writes the page"
    yield "again from what is in `benchmarks/results/false_alarms.jsonl`, `--number N` runs one prompt again). A prompt"
    yield f"took {seconds:.0f} s by the clock (median; two processes on two cores, beside much other work), about 3 s"
    yield "of a processor: all of them are an hour of one."
    yield ""
    yield ABOUT
    yield TEXTS
    yield f"**{len(lines):,} of {planned:,} prompts, {alarms} false alarms.** {positions:,} positions were compared on"
    yield "every rung. They come in an order drawn from the seed, a hundred at a time, those of one length together."
    yield ""
    yield "![distances in units of the noise floor, by rung and kind of text](false_alarms.svg)"


def _failed(line: Line) -> dict[str, str]:
    return {
        name: f"{each['verdict']}, {each['cause']}" for name, each in line["rungs"].items() if each["verdict"] != "PASS"
    }


def _values(lines: Sequence[Line], rung: str, metric: str) -> list[float]:
    return [line["rungs"][rung][metric] for line in lines if metric in line["rungs"][rung]]


def _question(rung: str) -> str:
    return {"reauthored64": "port", "float": "rounding"}.get(rung, "fidelity")


def _rungs(header: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    yield "## Rungs"
    yield ""
    yield "| rung | metric | prompts | median | 95 % below | 99 % below | largest | limit | more draws |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for rung in lines[0]["rungs"]:
        more = sum(line["rungs"][rung].get("draws", 0) > min(_values(lines, rung, "draws")) for line in lines)
        for metric in METRICS:
            values = _values(lines, rung, metric)
            shown = [*np.quantile(values, (0.5, 0.95, 0.99, 1)).tolist(), header["limits"][_question(rung)][metric]]
            yield f"| {rung} | `{metric}` | {len(values)} | {' | '.join(map(figure, shown))} | {more} |"
    yield ""
    yield "*More draws*: prompts whose verdict was open after four."


def _kinds(lines: Sequence[Line]) -> Iterator[str]:
    rungs = list(lines[0]["rungs"])
    yield "## Kinds of text"
    yield ""
    yield "The largest `floor_ratio` and `worst_position_ratio` of any prompt."
    yield ""
    yield f"| kind | prompts | {' | '.join(rungs)} |"
    yield "|---|---:" + "|---:" * len(rungs) + "|"
    for kind, of in _by_kind(lines):
        cells = (" / ".join(figure(max(_values(of, rung, metric))) for metric in METRICS) for rung in rungs)
        yield f"| {kind} | {len(of)} | {' | '.join(cells)} |"


def _by_kind(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    kinds = dict.fromkeys(line["kind"] for line in lines)
    return [(kind, [line for line in lines if line["kind"] == kind]) for kind in sorted(kinds)]


def _nearest(header: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    def nearness(line: Line, rung: str) -> float:
        limits = header["limits"][_question(rung)]
        return max(line["rungs"][rung][metric] / limits[metric] for metric in METRICS if metric in line["rungs"][rung])

    found = [
        (nearness(line, rung), line, rung)
        for line in lines
        for rung in line["rungs"]
        if "floor_ratio" in line["rungs"][rung]
    ]
    yield "## Nearest to a limit"
    yield ""
    yield "| prompt | kind | from | rung | `floor_ratio` | `worst_position_ratio` | where | draws |"
    yield "|---:|---|---|---|---:|---:|---|---:|"
    for _, line, rung in sorted(found, key=lambda each: -each[0])[:WORST]:
        each = line["rungs"][rung]
        shown = " | ".join(figure(each[metric]) for metric in METRICS)
        place = f"{each['worst_position']['phase']} {each['worst_position']['position']}"
        who = f"{line['number']} | {line['kind']} | {prose(line['source'])} | {rung}"
        yield f"| {who} | {shown} | {place} | {each['draws']} |"


def _alarms(lines: Sequence[Line]) -> Iterator[str]:
    alarms = [(line, failed) for line in lines if (failed := _failed(line))]
    if alarms:
        yield "## Alarms"
        yield ""
    for line, failed in alarms:
        said = "; ".join(f"{rung}: {cause}" for rung, cause in failed.items())
        yield f"- prompt {line['number']}, {line['kind']}, {prose(line['source'])}: {prose(said)}"


def _environment(header: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    found = header["environment"]
    yield "## Environment"
    yield ""
    yield f"Seed {header['seed']}, weights {header['sha256'][:8]}; {found['system']} on {found['machine']}, "
    yield f"{found['threads']} cores, Python {found['python']};"
    yield ", ".join(f"{name} {version}" for name, version in found["packages"].items()) + "."
    yield f"{sum(line['seconds'] for line in lines) / 3600:.1f} hours of two processes together."


def drawing(header: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """A panel a rung, a row a kind of text: how many prompts are at which distance."""
    left, right, row, top = 104, 392, 26, 84
    rows = [(ALL, list(lines)), *_by_kind(lines)]

    def at(power: float) -> float:
        return round(left + (right - left) * (power - FIRST) / (LAST - FIRST), 1)

    panels = []
    for rung in lines[0]["rungs"]:
        limits = header["limits"][_question(rung)]
        bottom = top + row * len(rows)
        panels.append(
            {
                "title": f"{rung}: {_question(rung)}",
                "top": top,
                "bottom": bottom,
                "limits": [{"x": at(math.log2(limits[metric])), "kind": kind} for metric, kind in METRICS.items()],
                "rows": [
                    {
                        "name": name,
                        "all": name == ALL,
                        "count": len(of),
                        "y": top + row * (number + 1),
                        "bars": [
                            bar
                            for metric, kind in METRICS.items()
                            for bar in _bars(_values(of, rung, metric), top + row * (number + 1), row - 4, kind, at)
                        ],
                    }
                    for number, (name, of) in enumerate(rows)
                ],
            }
        )
        top = bottom + 66
    return template("false_alarms.svg", Path(__file__).parent).render(
        title="Distances in units of the noise floor, by rung and kind of text",
        panels=panels,
        ticks=[{"x": at(power), "label": f"{2.0**power:g}"} for power in range(FIRST, LAST + 1) if power % 2 == 0],
        left=left,
        right=right,
        width=436,
        height=top - 20,
    )


def _bars(values: Sequence[float], bottom: int, high: int, kind: str, at: Any) -> Iterator[dict[str, Any]]:
    """A histogram over a logarithmic axis; what is beyond its ends is in the outermost bars."""
    powers = [min(max(math.log2(max(value, 1e-9)), FIRST), LAST - 1 / BARS) for value in values]
    counts = Counter(math.floor(power * BARS) for power in powers)
    most = max(counts.values(), default=1)
    for place, count in sorted(counts.items()):
        x, height = at(place / BARS), round(high * count / most, 1)
        width = round(at((place + 1) / BARS) - x - 0.6, 1)
        yield {"x": x, "y": round(bottom - height, 1), "width": width, "height": height, "kind": kind}
