"""docs/power.md and its drawing, from what ``power.py`` has found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from page import ROOT

from parity.files import write_whole
from parity.report.templates import template
from parity.spelling import DASH, figure, percent

Line = Mapping[str, Any]

#: Headings of the tables, and whether a dot of the drawing is hollow.
QUESTIONS = {
    "port": "exact port",
    "rounding": "float file",
    "weight_only_int8": "weight_only_int8",
    "dynamic_int8": "dynamic_int8",
    "stored": "scales, read off",
    "old rule": "port, old rule",
}
#: Those that are drawn: colours in light and in dark, and how far a dot is moved away from others of its row.
DRAWN = {
    "port": ("#0969da", "#4493f8", 0),
    "rounding": ("#8250df", "#ab7df8", -6),
    "weight_only_int8": ("#1a7f37", "#3fb950", 0),
    "dynamic_int8": ("#bc4c00", "#f0883e", 6),
    "old rule": ("#57606a", "#9198a1", 0),
}
HOLLOW = ("old rule",)
TITLES = {"sample": "trained weights", "tiny": "tiny twin"}
LEAST, MOST = -15, -1
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

ABOUT = """\
How small a mistake does `parity check` catch? One place of smollm2-135m is made wrong by a relative error, everything
else is left as it is, the seven prompts of `short` are run and judged with as many draws of the noise floor as the
verdict takes, and the change is undone. The tables have the smallest power of ten that is a FAIL while a tenth of it
passes; a dash where there is nothing to change, or where it was not run.
"""
INJECTED = """\
- Every number of the place is multiplied by 1 + e or by 1 - e, with a sign drawn for each; the score scale by 1 + e.
  Layers are the middle one: block {sample} of the trained model, block {tiny} of the tiny twin.
- *exact port*: in our model in float64, against the oracle. The table of the embedding and the head are one tensor;
  here only the one that is named is wrong.
- *float file*: in the numbers of the `.tflite` itself, in place, which then runs in LiteRT. Embedding and head are one
  table there, so both rows have the same figure. A file has no score scale (the converter's kernel, or the queries'
  weights, have it), so all the queries' weights are multiplied by 1 + e instead. Files are float32: what is below
  6e-8 changes nothing.
- *weight_only_int8*, *dynamic_int8*: in the scales of that weight in the quantized file, a sign for each channel (norm
  gains and frequencies are floats in it, and changed as such). The reference is PyTorch with the numbers that the file
  had before: a file that does not compute what it says.
- *scales, read off*: the same scales, held against the float weights without running anything (`weight_steps`,
  `weight_coarseness`): a file that says something else than the checkpoint.
- *port, old rule*: what was allowed until fidelity and rounding were told apart, 8 times the distance of one float32
  run of the original, all positions pooled; for the same wrong port.
"""
READ = """\
- The exact port sees what is a hundred million times smaller than what float32 sees. Both see mistakes in proportion to
  what float64 and float32 lose at that place.
- Where activations are rounded to eight bits, a difference in the last bit makes one of them another integer, and that
  spreads. On trained weights this is {loss} of the logits between the file and PyTorch although both compute the same;
  so the file as a whole shows a mistake in one layer only where it is larger than that. What such a file stores is read
  off it, weight by weight, to 1e-4 or 1e-3; `weight_only_int8` of the same weights sees how it is computed; and
  `parity bisect` compares stage by stage, where nothing has spread yet.
"""


def write(header: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """The page and its drawing."""
    write_whole(ROOT / "docs" / "power.svg", drawing(lines))
    write_whole(ROOT / "docs" / "power.md", page(header, lines))


def smallest(lines: Sequence[Line], weights: str, question: str, place: str) -> Line | None:
    """What was found of the smallest error that is caught, while a tenth of it passes.

    ``None`` if none is, or the search for it has not come to its end.
    """
    found = [
        line
        for line in lines
        if (line.get("weights"), line.get("question"), line.get("place")) == (weights, question, place)
    ]
    passed = max((line["exponent"] for line in found if line["verdict"] == "PASS"), default=LEAST - 1)
    caught = [line for line in found if line["verdict"] != "PASS" and line["exponent"] > passed]
    least = min(caught, key=lambda line: int(line["exponent"]), default=None)
    return least if least and least["exponent"] == max(passed + 1, LEAST) else None


def page(header: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """Everything as Markdown."""
    parts = [_head(lines), *(_table(lines, kind) for kind in TITLES), _width(lines), _environment(header)]
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"


def _head(lines: Sequence[Line]) -> Iterator[str]:
    taken = {kind: sum(line["seconds"] for line in lines if line.get("weights") == kind) for kind in TITLES}
    yield "# The smallest mistakes that are caught"
    yield ""
    yield f"Written by `python benchmarks/power.py`, which takes {_minutes(taken['tiny'])} for the tiny twin and"
    yield f"{_minutes(taken['sample'])} for the trained model (by the clock, beside other work), and goes on where it"
    yield "was ended; `python benchmarks/power.py page` writes the page again from `benchmarks/results/power.jsonl`."
    yield ""
    yield ABOUT
    yield f"![smallest relative error caught, by place and question]({Path('power.svg')})"
    yield ""
    yield "## What is injected"
    yield ""
    yield INJECTED.format(sample=15, tiny=1).rstrip()
    sound = _sound(lines, "sample")
    if "dynamic_int8" in sound:
        yield ""
        yield "## What it says"
        yield ""
        yield READ.format(loss=percent(sound["dynamic_int8"]["rel_l2"])).rstrip()


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


def places(lines: Sequence[Line]) -> list[str]:
    """In the order in which they were run."""
    return list(dict.fromkeys(line["place"] for line in lines if line.get("place") not in (None, "nothing")))


def _table(lines: Sequence[Line], kind: str) -> Iterator[str]:
    if not any(line.get("weights") == kind for line in lines):
        return
    yield f"## {TITLES[kind].capitalize()}"
    yield ""
    yield f"| place | {' | '.join(QUESTIONS.values())} |"
    yield "|---" + "|---:" * len(QUESTIONS) + "|"
    for place in places(lines):
        yield f"| {place} | {' | '.join(_cell(lines, kind, question, place) for question in QUESTIONS)} |"
    sound = _sound(lines, kind)
    cells = (_both(sound[question]) if "floor_ratio" in sound.get(question, ()) else DASH for question in QUESTIONS)
    yield f"| *nothing*: typical / worst ratio | {' | '.join(cells)} |"


def _sound(lines: Sequence[Line], kind: str) -> dict[str, Line]:
    """What was found without any mistake, by question."""
    return {line["question"]: line for line in lines if line.get("weights") == kind and line.get("place") == "nothing"}


def _both(line: Line) -> str:
    return f"{figure(line['floor_ratio'])} / {figure(line['worst_position_ratio'])}"


def _cell(lines: Sequence[Line], kind: str, question: str, place: str) -> str:
    tried = [
        line
        for line in lines
        if (line.get("weights"), line.get("question"), line.get("place")) == (kind, question, place)
    ]
    if found := smallest(lines, kind, question, place):
        return f"1e{found['exponent']}"
    return f"> 1e{MOST}" if any((line["exponent"], line["verdict"]) == (MOST, "PASS") for line in tried) else DASH


def _width(lines: Sequence[Line]) -> Iterator[str]:
    found = [line for line in lines if "width" in line]
    if not found:
        return
    yield "## Width"
    yield ""
    yield "A file adds more terms the wider a model is, and so do the draws of its floor. Models of full published"
    yield "size, weights drawn from a seed, the seven prompts of `short`: `python benchmarks/power.py width`, which is"
    yield "`parity check MODEL --weights synthetic --rung reauthored64 --rung float` for each."
    yield ""
    yield "Typical / worst ratio to the floor; the limits are 16 / 64 for the port and 3 / 8 for the file."
    yield ""
    yield "| model | parameters | width | exact port | float file | draws | verdict | s |"
    yield "|---|---:|---:|---:|---:|---:|---|---:|"
    for line in sorted(found, key=lambda line: int(line["parameters"])):
        exact, file = line["rungs"]["reauthored64"], line["rungs"]["float"]
        verdicts = " ".join(dict.fromkeys(rung["verdict"] for rung in (exact, file)))
        size = f"{line['parameters'] / 1e6:.0f}M"
        cells = (size, line["hidden"], _both(exact), _both(file), file["draws"], verdicts)
        yield f"| {line['width']} | {' | '.join(map(str, cells))} | {line['seconds']} |"


def _environment(header: Mapping[str, Any]) -> Iterator[str]:
    found = header["environment"]
    yield "## Environment"
    yield ""
    yield f"{found['system']} on {found['machine']}, {found['threads']} cores, Python {found['python']};"
    yield ", ".join(f"{name} {version}" for name, version in found["packages"].items()) + "."


def drawing(lines: Sequence[Line]) -> str:
    """A panel for each kind of weights, a row a place, a dot a question."""
    left, right, row, first = 148, 424, 26, 80
    kinds = [kind for kind in TITLES if any(line.get("weights") == kind for line in lines)]

    def at(exponent: int) -> float:
        return round(left + 8 + (right - left - 16) * (exponent - LEAST) / (MOST - LEAST), 1)

    panels = []
    top = first + 34
    for kind in kinds:
        rows = [
            {"name": place, "y": top + row // 2 + row * number, "dots": list(_dots(lines, kind, place, at))}
            for number, place in enumerate(places(lines))
        ]
        bottom = top + row * len(rows)
        panels.append({"title": TITLES[kind], "top": top, "bottom": bottom, "rows": rows})
        top = bottom + 62
    keys = [
        {"label": QUESTIONS[question], "colour": number, "hollow": question in HOLLOW, "x": x, "y": y}
        for (number, question), (x, y) in zip(
            enumerate(DRAWN), ((18, 24), (18, 46), (150, 24), (150, 46), (296, 24)), strict=True
        )
    ]
    return template("power.svg", Path(__file__).parent).render(
        title="The smallest relative error that is caught, by place and question",
        colours=[{"light": light, "dark": dark} for light, dark, _ in DRAWN.values()],
        keys=keys,
        panels=panels,
        ticks=[{"x": at(e), "label": f"10{str(e).translate(_SUPERSCRIPTS)}"} for e in range(LEAST, MOST + 1, 2)],
        left=left,
        right=right,
        width=436,
        height=top - 40,
    )


def _dots(lines: Sequence[Line], kind: str, place: str, at: Any) -> Iterator[dict[str, Any]]:
    for number, (question, (_, _, shift)) in enumerate(DRAWN.items()):
        if found := smallest(lines, kind, question, place):
            words = f"{place}, {QUESTIONS[question]}: 1e{found['exponent']}"
            yield {
                "x": at(found["exponent"]),
                "shift": shift,
                "colour": number,
                "hollow": question in HOLLOW,
                "words": words,
            }
