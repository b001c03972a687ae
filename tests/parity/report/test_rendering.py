"""Whatever a model, a file or an exception put into a report, its renderings stay whole and say what was there."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console
from sample_reports import INT8, broken_port, costs, faithful, floors, held, priced, trained_report

from parity.compare.budgets import TIERS
from parity.compare.limits import ENCODER_LIMITS, LIMITS, STORED_LIMITS, Question
from parity.compare.measuring import Measured
from parity.compare.verdict import Edge, Verdict
from parity.errors import UsageError
from parity.report.charts import Chart, share_of_limit
from parity.report.figures import shown, within
from parity.report.html import to_html
from parity.report.markdown import to_markdown
from parity.report.notes import limits_shown
from parity.report.record import Report, RungRecord, read_json, write_json
from parity.report.terminal import render, render_summary
from parity.spelling import DASH

HOSTILE = [
    "[red]x[/]",
    "[/nothing] [link=http://x]y[/link] \\[bold]",
    "<script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)> ' &amp; &lt;",
    "| a | b \\| c",
    "`a` ``b`` ~~c~~ **d** _e_ ![f](g) [h](i) <!-- j",
    "one\ntwo\r\n\n# three\n| four |\n\n- five",
    "\x1b[31mred\x1b[0m \x1b]8;;http://x\x1b\\link \x07 \x9b2J \x08",
    "\u202etxt.exe\u202c \u2066\u200f\u200b\u2028 \u05d0\u05d1",
    "\ud800 lone, \ue000 private, \x00 null",
    "@everyone #1 $x$ {{ 7 * 7 }} {% raw %}",
    "wide 漢字テスト 👩‍👩‍👧 ❤️ e\u0301",
    "x" * 300,
    "",
    "   ",
]
ANY_TEXT = st.text(st.characters(), max_size=60)
ANY_FIGURE = st.none() | st.floats() | st.integers(-(10**12), 10**12) | st.booleans() | st.just("text") | st.just([])
METRICS = (
    "floor_ratio", "worst_position_ratio", "rel_l2", "kl_typical", "kl_mean", "kl_p99", "flips", "top1_agreement",
    "top1_agreement_clear", "top5_overlap", "perplexity_ratio", "typical_confidence", "draws", "prompts",
)  # fmt: skip
NESTED = ("prefill", "decode", "interval", "bound", "outliers", "worst_position")
#: The only control sequences that rich writes.
COLOUR = re.compile(r"\x1b\[[\d;]*m")
#: The elements that our own template is made of.
ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title style body header footer section div h1 h2 h3 p span b code br a ul li details summary "
        "dl dt dd figure figcaption svg g rect path circle line text mark table thead tbody tr th td",
    )
)
#: Each example compiles a template; how long that takes is not what is tested.
relaxed = settings(deadline=None, max_examples=60)


def plain_report(**changed: Any) -> Report:
    """A run of sound float rungs, and a quantized one that does what it says and is over budget."""
    report = trained_report()
    edges = [edge for edge in report.edges if edge.candidate not in ("reauthored64", "fp16")]
    return replace(report, **{"edges": edges} | changed)


def failed_report(text: str = "no network") -> Report:
    """A run that ended before anything was compared."""
    edges = [Edge(reference="original64", candidate="float", verdict=Verdict.ERROR, cause=text)]
    nothing: dict[str, Any] = {"conditioning": {}, "prompts_said": {}, "texts": {}}
    prompts = {"name": "short", "sha256": None, "prompts": 0, "positions": 0}
    return plain_report(rungs=[], generation=[], edges=edges, cause=text, prompt_set=prompts, **nothing)


def situated_report(**changed: Any) -> Report:
    """A run of situations: one fails on the float rung, one does not apply to it, one not to the model."""
    counts = {"short": (7, 224), "window": (5, 54), "batch": (4, 116)}
    edges = []
    for edge in plain_report().edges:
        sound = {"floor_ratio": 0.5, "worst_position_ratio": 1.5, "rel_l2": 1.2e-6, "verdict": "PASS", "cause": None}
        found: dict[str, Any] = {name: {"prompts": n, "positions": m, **sound} for name, (n, m) in counts.items()}
        if edge.candidate == "float":
            found["window"] |= {"worst_position_ratio": 4321.0, "verdict": "FAIL", "cause": "worst, limit 8.0"}
        if edge.candidate in ("float", "dynamic_int8"):
            found["batch"] = {"verdict": None, "cause": "an exported file takes one row"}
        edges.append(edge if edge.question == "quality" else replace(edge, situations=found))
    prompts = {
        **plain_report().prompt_set,
        "name": "all",
        "situations": {name: {"prompts": n, "positions": m} for name, (n, m) in counts.items()},
        "left_out": {"turns": "a prompt goes in one call"},
    }
    return plain_report(**{"edges": edges, "prompt_set": prompts} | changed)


def hostile_report(text: str) -> Report:
    """``text`` wherever a report holds any."""
    row = {"positions": 3, "rel_l2": text, "kl": [0.1, text, None], "ratio": [1.0, 2.0, text], "floor_ratio": text}
    measured = {**costs(INT8, 0.1).metrics, **floors(1.0, 2.0, 1e-6).metrics, "outliers": {text: 2.0, f"{text}5": text}}
    asked: tuple[tuple[str, Verdict, Question], ...] = (
        (text, Verdict.FAIL, "quality"),
        (text, Verdict.FAIL, "fidelity"),
        ("float", Verdict.ERROR, "rounding"),
        (f"{text}2", Verdict.PASS, "quality"),
    )
    edges = [
        Edge(
            reference=text,
            candidate=name,
            question=question,
            verdict=verdict,
            metrics=measured,
            limits={"kl_mean": 0.1, text: 1.0},
            situations={text: {"verdict": text, "cause": text, "kl_mean": text}, f"{text}4": {"cause": text}},
            prompts={text: row, f"{text}5": row},
            own_loss={"kl_typical": 0.1, text: text},
            budget=text,
            first_divergent_stage=text,
            cause=text,
            remark=text,
        )
        for name, verdict, question in asked
    ]
    exceptions = [{"weight": text, "asked": text, "precision": text}] * 5
    difference = {"at": text, "kind": text, "prompt": text}
    return plain_report(
        model=text,
        family=text,
        weights={"kind": text, "path": text, "sha256": text, "revision": text},
        prompt_set={
            "name": text,
            "sha256": text,
            "prompts": 7,
            "positions": 224,
            "situations": {text: {"prompts": text, "positions": 4}, "other": text},
            "left_out": {text: text},
        },
        rungs=[RungRecord(name=text, artifact={"weights": {text: 5}, "exceptions": exceptions})],
        edges=edges,
        generation=[
            {"rung": text, "matches": 1, "of": 2, "first_difference": difference, "chosen": {text: [4, 5]}},
            {"rung": f"{text}2", "matches": 1, "of": 2, "first_difference": None, "chosen": {text: [4, text]}},
        ],
        environment={"packages": {text: text, "torch": text}, f"{text}3": text, "revision": text, "python": text},
        cause=text,
        conditioning={text: {"typical": text, "worst": text, "times": text, "ill": True}},
        command=text,
        date=text,
        prompts_said={text: [4, 6], f"{text}5": text},
        texts={"prompts": {text: [4, 5, text]}, "pieces": {"4": text, "5": text}},
    )


def printed(draw: Callable[..., None], what: Any, width: int, *, colour: bool = False) -> str:
    file = io.StringIO()
    system = "truecolor" if colour else None
    draw(what, Console(file=file, width=width, force_terminal=colour, color_system=system, legacy_windows=False))
    return file.getvalue()


def everything(reports: Sequence[Report]) -> list[str]:
    """All renderings."""
    terminal = [printed(render, report, width) for report in reports for width in (80, 120)]
    markdown = [to_markdown(reports), to_markdown(reports, prompts=True)]
    return [*terminal, printed(render_summary, reports, 80), *markdown, to_html(reports)]


def squeezed(text: str) -> str:
    return "".join(text.split())


def assert_tame(output: str, width: int) -> None:
    """Nothing that a terminal acts on, and no line longer than it."""
    for line in output.split("\n"):
        unruly = [c for c in line if unicodedata.category(c)[0] in "CZ" and c != " "]
        assert not unruly, (unruly, line)
        assert cell_len(line) <= width, line


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes and text, all elements closed in order."""

    void = frozenset({"meta", "br"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.rows: list[int] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def assert_safe_page(source: str, text: str) -> None:
    """Our elements only, nothing fetched, nothing run; ``text`` is there to be read."""
    page = Page(source)
    source.encode("utf-8")
    assert page.tags <= ELEMENTS
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "style", "xlink:href")]
    assert all(re.fullmatch(r"#model-\d+", value) for name, value in page.attributes if name == "href")
    assert "url(" not in source
    assert "@import" not in source.partition("</style>")[0]
    assert squeezed(shown(text)) in squeezed(page.text)


def assert_safe_markdown(source: str, text: str) -> None:
    """The blocks we wrote and no others; every table row as long as its head; ``text`` is there to be read."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(source)
    source.encode("utf-8")
    blocks = {token.type for token in tokens}
    ours = {"heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item"}
    assert blocks <= {f"{name}_{end}" for name in ours for end in ("open", "close")} | {"inline", "html_block"}
    folded = "Environment.*|Limits and their reasons|More figures|Prompt by prompt"
    details = re.compile(rf"<details>\n<summary>(?:{folded})</summary>\n|</details>\n?")
    assert all(details.fullmatch(token.content) for token in tokens if token.type == "html_block")
    read, in_code = [], False
    for token in tokens:
        for child in token.children or []:
            assert child.type in {"text", "code_inline", "html_inline", "strong_open", "strong_close", "softbreak"}
            assert child.type != "html_inline" or child.content in ("<code>", "</code>")
            if child.type == "html_inline":
                in_code = child.content == "<code>"
            else:
                # GitHub looks for people and issues in text, not in code.
                assert in_code or child.type != "text" or not re.search(r"[@#]\w", child.content)
                read.append(child.content)
    assert squeezed(shown(text)) in squeezed("".join(read).replace("\u200b", ""))
    # Cells are counted in the source: a parser drops those that are too many.
    head = 0
    for line in source.split("\n"):
        cells = line.count("|") - 1 if line.startswith("|") else 0
        assert not head or not cells or cells == head
        head = cells


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_terminal(text: str) -> None:
    for width in (80, 120):
        report = hostile_report(text)
        for output in (printed(render, report, width), printed(render_summary, [report, plain_report()], width)):
            assert_tame(output, width)
            assert squeezed(shown(text)) in squeezed(output)
        coloured = COLOUR.sub("", printed(render, report, width, colour=True))
        assert coloured == printed(render, report, width)


@given(ANY_TEXT, st.integers(50, 200))
@relaxed
def test_any_text_in_a_terminal(text: str, width: int) -> None:
    assert_tame(printed(render, hostile_report(text), width), width)
    assert_tame(printed(render_summary, [hostile_report(text)], width), width)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_html(text: str) -> None:
    assert_safe_page(to_html([hostile_report(text)]), text)
    assert_safe_page(to_html([hostile_report(text), failed_report(text)]), text)


@given(ANY_TEXT)
@relaxed
def test_any_text_in_html(text: str) -> None:
    assert_safe_page(to_html([hostile_report(text)]), text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_markdown(text: str) -> None:
    for prompts in (False, True):
        assert_safe_markdown(to_markdown([hostile_report(text)], prompts=prompts), text)
    assert_safe_markdown(to_markdown([hostile_report(text), failed_report(text)]), text)


@given(ANY_TEXT | st.text("|`*_<>&\\[]()!#@~-+.=:/ \n1a", max_size=30))
@example("a_ _b")
@example("__0__")
@example("0)")
@relaxed
def test_any_text_in_markdown(text: str) -> None:
    for prompts in (False, True):
        assert_safe_markdown(to_markdown([hostile_report(text)], prompts=prompts), text)


def test_a_terminal_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    for report in (plain_report(), failed_report("wide 漢字"), hostile_report("‖≤—é")):
        render(report, console)
        render_summary([report], console)
    assert_tame(raw.getvalue().decode("ascii"), 80)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*METRICS, *NESTED), ANY_FIGURE)))
@example({"kl_typical": 1.0, "interval": {"kl_mean": [None, math.inf], "new": 3}, "bound": {"kl_typical": None}})
@example({"kl_typical": 1.0, "outliers": {"english": math.nan, "code": "text"}, "bound": {"kl_typical": [1.0, None]}})
@example({"kl_mean": 1.7976931348623157e308, "floor_ratio": 5e-324})
@example({"kl_mean": -1.0, "perplexity_ratio": 0.0, "top1_agreement": 0.0})
@relaxed
def test_figures_of_any_kind(metrics: dict[str, Any]) -> None:
    bounds = {"floor_ratio": 8.0, "kl_mean": 0.1, "top1_agreement": 0.9, "perplexity_ratio": [0.9, 1.1], "rel_l2": None}
    asked: tuple[tuple[str, Question], ...] = (
        ("float", "rounding"),
        ("dynamic_int8", "fidelity"),
        ("dynamic_int8", "quality"),
    )
    edges = [
        Edge(
            reference="original64",
            candidate=name,
            question=question,
            verdict=Verdict.ERROR,
            metrics=metrics,
            limits={**bounds, "kl_typical": 0.1},
            prompts={"english": {**metrics, "kl": list(metrics.values()), "ratio": list(metrics.values())}},
            own_loss=metrics,
        )
        for name, question in asked
    ]
    for output in everything([plain_report(edges=edges)]):
        read = Page(output).text if output.startswith("<!DOCTYPE") else output
        assert not re.search(r"\b(nan|inf|None)\b", read)


def test_a_run_without_figures_renders_everywhere() -> None:
    for report in (failed_report(), replace(failed_report(), edges=[], cause=None), plain_report(edges=[], rungs=[])):
        for output in everything([report]):
            assert "ERROR" in output
    assert "the run" in to_markdown([replace(failed_report(), edges=[])])
    row = next(line for line in printed(render, failed_report(), 120).split("\n") if line.startswith("float"))
    assert set(row.split()) == {"float", "ERROR", DASH}


def test_situations_have_a_row_each() -> None:
    """Situations down, what fails first; rungs across, by the figure that judges them; what does not apply is said."""
    report = situated_report()
    for width in (80, 120):
        output = printed(render, report, width)
        assert_tame(output, width)
        below = output[output.index("situation ") :].split("\n")
        rows = [re.sub(" / ", "/", line).split() for line in below[2:5]]
        assert rows == [
            ["window", "5", "54", "0.500/1.50", "0.500/4321", "0.500/1.50"],
            ["short", "7", "224", "0.500/1.50", "0.500/1.50", "0.500/1.50"],
            ["batch", "4", "116", "0.500/1.50", DASH, DASH],
        ]
        for sentence in (
            "turns: a prompt goes in one call",
            "batch on float, dynamic_int8: an exported file takes one",
        ):
            assert squeezed(sentence) in squeezed(output)
    assert "\x1b[1;31m0.500 / 4321" in printed(render, report, 120, colour=True)
    markdown = to_markdown([report])
    assert "| `window` | 5 | 54 | 0.500 / 1.50 | **0.500 / 4321** | 0.500 / 1.50 |" in markdown
    assert "| `batch` | 4 | 116 | 0.500 / 1.50 | — | — |" in markdown
    page = to_html([report])
    assert '<td class="figure broken" data-title="float typical / worst">0.500 / 4321</td>' in page
    assert "batch on float, dynamic_int8: an exported file takes one row" in Page(page).text


def test_a_plain_prompt_set_has_no_rows_of_situations() -> None:
    """Its report is what it always was."""
    for output in everything([plain_report()]):
        assert "situation" not in output


def test_situations_survive_being_saved(tmp_path: Path) -> None:
    """What is read back renders as what was written, with situations that are not what they should be as well."""
    write_json([situated_report()], tmp_path / "run.json")
    again = read_json(tmp_path / "run.json")
    assert printed(render, again[0], 100) == printed(render, situated_report(), 100)
    for wrong in ([], "text", {"window": "text"}, {"window": None}, None):
        edges = [replace(edge, situations=wrong) for edge in situated_report().edges]
        for output in everything([situated_report(edges=edges)]):
            assert "FAIL" in output


def test_a_run_of_no_models_is_an_error_everywhere() -> None:
    for output in (printed(render_summary, [], 80), to_markdown([]), to_html([])):
        assert "ERROR" in output
        assert "PASS" not in output


def test_a_cause_shared_by_the_run_and_its_rungs_is_said_once() -> None:
    assert printed(render, failed_report("no such thing"), 80).count("no such thing") == 1
    assert to_markdown([failed_report("no such thing")]).count("no such thing") == 1


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_numbers_are_never_cut(width: int) -> None:
    lines = printed(render, plain_report(), width).split("\n")
    table = [line for line in lines if re.match(r"(original|reauthored|float|dynamic_int8) +(PASS|FAIL)", line)]
    assert len(table) == 4
    assert "0.610" in table[0]
    assert "0.0400" in table[3]
    assert "…" not in "".join(lines)
    assert lines[-2] == "FAIL smollm2-135m  5 edges, 180 positions, 41.3 s"


def table_rows(lines: Sequence[str]) -> dict[str, list[str]]:
    """What stands beside each rung."""
    return {line.split()[0]: line.split()[1:] for line in lines if re.match(r"\w+ +(PASS|FAIL|ERROR) ", line)}


def test_a_rung_is_a_line_and_its_questions_have_each_a_verdict() -> None:
    """Whether it is sound, with the figures of that; whether the model can afford it, with the figures of that."""
    lines = printed(render, trained_report(), 80).split("\n")
    rows = table_rows(lines)
    assert rows["reauthored64"] == ["PASS", "0.320", "1.40", "2.1e-15"]
    assert rows["float"] == ["PASS", "0.710", "2.10", "7.6e-5"]
    assert rows["dynamic_int8"] == ["PASS", "0.700", "2.20", "1.1e-6", "FAIL", "0.0400", "0.0490", "12.7%"]
    assert rows["fp16"] == ["PASS", "0.500", "1.20", "1.1e-6", "PASS", "4.0e-6", "4.9e-6", "0.3%"]
    assert not [line for line in lines if len(line) > 80]
    row = (
        "| `dynamic_int8` | ✅ PASS | 0.700 | 2.20 | 1.1e-6 | ❌ FAIL | **0.0400** | **0.0490** | ≤ 0.001 | **12.7%** |"
    )
    assert row in to_markdown([trained_report()])
    coloured = printed(render, trained_report(), 80, colour=True)
    assert "\x1b[1;31m0.0490" in coloured
    assert "\x1b[1;31m12.7%" in coloured
    assert "\x1b[1;31m4.9e-6" not in coloured


def test_without_a_quantized_rung_there_is_one_verdict() -> None:
    """And none of the columns of the other."""
    report = trained_report(edges=trained_report().edges[:4])
    for width in (80, 200):
        output = printed(render, report, width)
        assert re.search(r"rung +verdict +typical", output)
        assert not re.search(r"quality|at most|flips", output)
    assert "| rung | verdict | floor typical | floor worst | rel L2 | run s | peak MB |" in to_markdown([report])


def test_what_is_over_budget_reads_as_that() -> None:
    """Whose loss it is, in the cause; the limit, the bound and the outlier beside it; nowhere another story."""
    for output in everything([trained_report()]):
        read = " ".join((Page(output).text if output.startswith("<!DOCTYPE") else output).split())
        assert "over budget lossless" in read
        assert "the recipe itself loses 0.0383 of 0.0400; the file does what it says" in read
        assert "held to what" not in read
    said = "dynamic_int8: the typical prompt loses KL 0.0400, at most 0.0490 (93.8% sure); lossless allows ≤ 0.001, "
    text = " ".join(printed(render, trained_report(), 120).split())
    assert f"{said}flips ≤ 5%; outlier: repeated 2.07" in text
    assert "fp16: the typical prompt loses KL 4.0e-6" in text
    assert "the recipe itself loses 3.1e-6; outlier: repeated 2.1e-4" in text


def test_what_a_person_needs_to_know_is_said() -> None:
    text = " ".join(printed(render, trained_report(), 120).split())
    assert "dynamic_int8 quality: over budget" in text
    assert "5 of 17 weights float32 instead of int8 (blocks.0.mlp, blocks.1.mlp, blocks.2.mlp and 2 more)" in text
    assert "original, reauthored, fp16: 56/56 tokens" in text
    assert "float: 55/56 tokens, 1 tie " in text
    assert "token 3 of repeated" not in text
    assert "dynamic_int8: 53/56 tokens, 3 changed, the first at token 3 of english" in text
    assert "repeated amplifies rounding 54.2 times as much as the typical prompt" in text
    assert "4 draws of rounding, 8 for float, dynamic_int8 fidelity, fp16 fidelity" in text
    others = ("KL mean 0.329 (0 to 0.987)", "ppl ratio 1.0930 (0.9900 to 1.2100)", "flips 12.7% (6.3% to 25.4%)")
    for rendering in (to_markdown([trained_report()]), Page(to_html([trained_report()])).text):
        assert all(sentence in rendering for sentence in others)
        assert "53/56 tokens, 3 changed, the first at token 3 of english" in rendering
        assert "repeated amplifies rounding 54.2 times" in rendering
        assert "outlier: repeated 2.07" in rendering
    assert "7e303f9f" in text
    assert "7e303f9f7" not in text


def test_a_broken_port_and_a_rung_that_did_not_run() -> None:
    """The port is told apart from what follows from it, a crash from both, a defect from a tie."""
    text = printed(render, broken_port(), 80)
    rows = table_rows(text.split("\n"))
    assert rows["reauthored64"][:4] == ["FAIL", "3.1e7", "4.4e8", "2.0e-6"]
    assert rows["original"][0] == "PASS"
    assert rows["dynamic_int8"][0] == "ERROR"
    flat = " ".join(text.split())
    assert "at position 15 of repeated (decode), limit ≤ 64; first diverging stage: block_3" in flat
    assert "dynamic_int8: the process was killed" in flat
    assert "float: 55/56 tokens, 1 defect, the first at token 2 of code" in flat
    assert "\x1b[31m55/56 tokens, 1 defect" in printed(render, broken_port(), 120, colour=True)


def test_when_how_and_with_what_a_report_was_made() -> None:
    """Date, command, revision and versions, in every rendering; what is not known is not said."""
    about = (
        "2026-11-30 18:07",
        "parity check smollm2-135m --weights sample --recipe dynamic_int8 --recipe fp16",
        "revision fa6aee30+",
        "torch 2.13.0",
        "Python 3.11.7",
    )
    for output in (printed(render, trained_report(), 300), to_markdown([trained_report()])):
        assert all(item in output for item in about)
    assert all(item in Page(to_html([trained_report()])).text for item in about)
    dim = next(line for line in printed(render, trained_report(), 300, colour=True).split("\n") if "2026" in line)
    assert dim.startswith("\x1b[2m2026-11-30 18:07, parity check")
    unknown = trained_report(command=None, date=None, environment={"revision": None})
    for output in everything([unknown]):
        assert "None" not in output
        assert "revision" not in output


def test_colour_stays_on_the_word_it_belongs_to() -> None:
    lines = printed(render, plain_report(), 120, colour=True).split("\n")
    assert lines[-2].startswith("\x1b[1;31mFAIL\x1b[0m")
    assert lines[-2].endswith("\x1b[0m  5 edges, 180 positions, 41.3 s")


def test_several_models_are_one_row_each() -> None:
    reports = [plain_report(), plain_report(model="qwen2.5-0.5b", edges=plain_report().edges[:3]), failed_report()]
    summary = printed(render_summary, reports, 80)
    assert [line.split()[:2] for line in summary.split("\n")[3:6]] == [
        ["smollm2-135m", "FAIL"],
        ["qwen2.5-0.5b", "PASS"],
        ["smollm2-135m", "ERROR"],
    ]
    assert summary.split("\n")[3].split()[2:] == ["4", "of", "5", "0.710", "2.20", "0.0400", "12.7%", "41.3"]
    assert summary.split("\n")[4].split()[2:] == ["3", "of", "3", "0.710", "2.10", DASH, DASH, "41.3"]
    assert "ERROR 3 models: 1 PASS, 1 FAIL, 1 ERROR" in summary
    assert to_markdown(reports).startswith("## ⚠️ ERROR 3 models: 1 PASS, 1 FAIL, 1 ERROR")
    page = Page(to_html(reports))
    assert [value for name, value in page.attributes if name == "href"] == ["#model-1", "#model-2", "#model-3"]
    assert to_markdown(reports).count("<summary>Environment</summary>") == 1


@pytest.mark.parametrize("report", [plain_report(), broken_port(), failed_report(), hostile_report("[x] <b> | \n")])
def test_a_record_read_back_is_the_same(report: Report, tmp_path: Path) -> None:
    assert Report.from_json(report.to_json()) == report
    for written in ([report], [report, report]):
        write_json(written, tmp_path / "run.json")
        assert read_json(tmp_path / "run.json") == written
        assert everything(read_json(tmp_path / "run.json")) == everything(written)


@given(st.sampled_from([math.nan, math.inf, -math.inf]))
@relaxed
def test_figures_that_are_not_finite_are_null_in_strict_json(value: float) -> None:
    edge = Edge(
        reference="a", candidate="float", verdict=Verdict.ERROR, metrics={"kl_mean": value, "prefill": {"x": [value]}}
    )
    record = plain_report(edges=[edge]).to_json()
    metrics = json.loads(json.dumps(record, allow_nan=False))["edges"][0]["metrics"]
    assert metrics == {"kl_mean": None, "prefill": {"x": [None]}}
    for output in everything([Report.from_json(record)]):
        assert DASH in output


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b"3", b"null", b'"text"', b"{}", b"\xff\xfe\x00", b"<html>", b'{"schema_version": 2}',
     b'{"schema_version": 1}', b'{"models": [3]}', b'{"models": [{}]}', b'{"schema_version": 1, "edges": 4}'],
)  # fmt: skip
def test_a_file_that_is_no_report_is_wrong_use(garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(garbage)
    with pytest.raises(UsageError, match=r"not a report|is not 1"):
        read_json(path)


def test_a_file_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        read_json(tmp_path / "run.json")


@given(st.sampled_from((*LIMITS, *TIERS, *ENCODER_LIMITS)), st.floats(1e-9, 1e3), st.floats(1, 1e3))
def test_a_limit_is_used_up_exactly_when_it_is_broken(table: str, value: float, worse: float) -> None:
    """The chart and the colours agree with ``Limit.holds``, which made the verdict by what a figure is at worst."""
    limits = TIERS[table].limits if table in TIERS else {**LIMITS, **ENCODER_LIMITS}[table]
    for limit in limits:
        for bound in ({}, {limit.metric: value * worse}):
            edge = Edge(
                reference="a",
                candidate="b",
                question="quality",
                verdict=Verdict.PASS,
                metrics={limit.metric: value, "bound": bound},
                limits={limit.metric: limit.bound},
            )
            judged = bound.get(limit.metric, value)
            share = share_of_limit(edge, limit.metric)
            assert share is not None
            assert within(edge, limit.metric) == limit.holds(judged)
            assert (share <= 1) == limit.holds(judged) or math.isclose(share, 1)
            chart = Chart.of(plain_report(edges=[edge]))
            assert chart.rows[0].lead is not None
            assert 0 <= chart.rows[0].lead.x <= 1


def test_a_limit_with_two_ends_is_used_up_at_the_worse_end() -> None:
    """Of the figure's interval."""
    edge = Edge(
        reference="a",
        candidate="b",
        verdict=Verdict.FAIL,
        metrics={"perplexity_ratio": 1.01, "bound": {"perplexity_ratio": [0.85, 1.02]}},
        limits={"perplexity_ratio": [0.9, 1.1]},
    )
    share = share_of_limit(edge, "perplexity_ratio")
    assert share == pytest.approx(math.log(0.85) / math.log(0.9))
    assert not within(edge, "perplexity_ratio")


def test_reasons_are_given_for_todays_limits_only() -> None:
    """Every question's, a tier's, an encoder's, those of a budget of one's own; each said once."""
    found = {(at.metric, at.bound, at.rungs): at.reason for at in limits_shown([trained_report(), trained_report()])}
    files, costs = ("dynamic_int8 fidelity", "fp16 fidelity"), ("dynamic_int8 quality", "fp16 quality")
    reasons = {(table, limit.metric): limit.reason for table, limits in LIMITS.items() for limit in limits}
    floats = ("original", "reauthored", "float")
    assert found == {
        ("floor_ratio", "≤ 3", floats): reasons["rounding", "floor_ratio"],
        ("worst_position_ratio", "≤ 8", floats): reasons["rounding", "worst_position_ratio"],
        ("floor_ratio", "≤ 16", ("reauthored64",)): reasons["port", "floor_ratio"],
        ("worst_position_ratio", "≤ 64", ("reauthored64",)): reasons["port", "worst_position_ratio"],
        ("floor_ratio", "≤ 3", files): reasons["fidelity", "floor_ratio"],
        ("worst_position_ratio", "≤ 8", files): reasons["fidelity", "worst_position_ratio"],
        **{(limit.metric, f"≤ {limit.most}", files): limit.reason for limit in STORED_LIMITS},
        ("kl_typical", "≤ 0.001", costs): TIERS["lossless"].limits[0].reason,
        ("flips", "≤ 5%", costs): TIERS["lossless"].limits[1].reason,
    }
    edge = trained_report().edges[5]
    old = replace(edge, limits={**edge.limits, "kl_typical": 123.0, "gone": 1.0})
    said = {limit.metric: limit.reason for limit in limits_shown([plain_report(edges=[old])])}
    assert said["kl_typical"] == "The limit has changed since; it is now ≤ 0.001."
    assert "not in today's table" in said["gone"]
    own = replace(edge, budget="pyproject.toml")
    assert {limit.reason for limit in limits_shown([plain_report(edges=[own])])} == {"As pyproject.toml asks."}
    eye = replace(edge, output="encoder", budget=None, limits={"rel_l2": 0.087})
    (limit,) = limits_shown([plain_report(edges=[eye])])
    assert limit.reason == ENCODER_LIMITS["dynamic_int8"][0].reason
    assert limit.rungs == ("dynamic_int8 encoder quality",)


def test_what_an_encoder_made_has_lines_of_its_own() -> None:
    """With its own distance under both questions."""
    sound = replace(faithful("dynamic_int8"), output="encoder")
    cost = {"rel_l2": 0.029, "prompts": 7, "rel_l2_typical": 0.016, "typical_confidence": 0.9375}
    interval = {"interval": {"rel_l2_typical": [0.01, 0.02]}}
    priced_rows = priced("dynamic_int8", "", Measured({**cost, **interval}), None, ENCODER_LIMITS["dynamic_int8"])
    edges = [*plain_report().edges, sound, replace(priced_rows, output="encoder", budget=None)]
    text = printed(render, plain_report(edges=edges), 160)
    row = next(line for line in text.split("\n") if line.startswith("dynamic_int8 encoder"))
    assert row.split()[2:9] == ["PASS", "0.700", "2.20", "1.1e-6", "PASS", "0.0290", "≤"]
    said = "the typical prompt loses rel L2 0.0160, at most 0.0200 (93.8% sure); the limit allows rel L2 ≤ 0.087"
    assert said in " ".join(text.split())


def test_an_edge_of_an_older_file_is_asked_what_its_rung_is_asked_today() -> None:
    """And the file has nothing else that is new."""
    record = trained_report().to_json()
    for key in ("conditioning", "command", "date", "prompts_said", "texts"):
        del record[key]
    for edge in record["edges"]:
        for key in ("question", "prompts", "budget", "remark"):
            del edge[key]
    report = Report.from_json(record)
    asked = {(edge.candidate, edge.question) for edge in report.edges}
    assert asked == {
        ("original", "rounding"), ("reauthored64", "port"), ("reauthored", "rounding"), ("float", "rounding"),
        ("dynamic_int8", "quality"), ("fp16", "quality"),
    }  # fmt: skip
    assert (report.command, report.conditioning) == (None, {})
    for output in everything([report]):
        assert "FAIL" in output


@pytest.mark.parametrize(
    ("key", "value"),
    [("command", 3), ("date", []), ("conditioning", []), ("texts", "text"), ("prompts_said", None), ("streamed", 1)],
)
def test_what_is_new_in_a_record_is_checked_as_well(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{key} of this report"):
        Report.from_json(trained_report().to_json() | {key: value})


def test_a_question_that_nobody_asks_is_no_report() -> None:
    record = trained_report().to_json()
    record["edges"][0]["question"] = "speed"
    with pytest.raises(UsageError, match="no edge asks 'speed'"):
        Report.from_json(record)


def test_notes_of_edges_are_said() -> None:
    """Once for all that have the same."""
    said = "flips has no meaning on these prompts"
    edges = [replace(edge, remark=said if edge.question == "quality" else None) for edge in trained_report().edges]
    text = " ".join(printed(render, trained_report(edges=edges), 120).split())
    assert f"dynamic_int8 quality, fp16 quality: {said}" in text
    assert held("float", "rounding", floors(1.0, 2.0, 1e-6)).remark is None
