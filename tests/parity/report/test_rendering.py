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

from parity.compare.limits import limits_for
from parity.compare.verdict import Edge, Verdict, judge
from parity.errors import UsageError
from parity.report.figures import DASH, figure, limits_shown, percent, shown, within
from parity.report.html import Chart, share_of_limit, to_html
from parity.report.markdown import to_markdown
from parity.report.record import Report, RungRecord, read_json, write_json
from parity.report.terminal import render, render_summary

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
NAMES = ("floor_ratio", "worst_position_ratio", "rel_l2", "kl_mean", "kl_p99", "top1_agreement", "top1_agreement_clear")
METRICS = (*NAMES, "top5_overlap", "perplexity_ratio")
NESTED = ("prefill", "decode", "interval", "detectable")
#: The only control sequences that rich writes.
COLOUR = re.compile(r"\x1b\[[\d;]*m")
#: The elements that our own template is made of.
ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title style body header footer section div h1 h2 h3 p span b code br a ul li details summary "
        "dl dt dd figure figcaption svg g rect path circle text tspan table thead tbody tr th td",
    )
)
#: Each example compiles a template; how long that takes is not what is tested.
relaxed = settings(deadline=None, max_examples=60)


def figures(**changed: Any) -> dict[str, Any]:
    known = dict.fromkeys(METRICS, 0.5) | {"perplexity_ratio": 1.0001, "rel_l2": 1.2e-6} | changed
    return {**known, "prefill": {"floor_ratio": 1.09}, "decode": {"floor_ratio": 1.18}}


def plain_report(**changed: Any) -> Report:
    """A run as it should be: three float rungs and a quantized one that fails."""
    edges = [judge("original64", name, figures(), limits_for(name)) for name in ("original", "reauthored", "float")]
    sampled = {
        "prompts": 7,
        "interval": {"kl_mean": [1.5, 2.5], "top1_agreement_clear": [0.25, 0.75], "perplexity_ratio": [0.98, 1.02]},
        "detectable": {"kl_mean": 0.7, "top1_agreement_clear": 0.125, "perplexity_ratio": 0.025},
    }
    edges.append(judge("original64", "dynamic_int8", figures(kl_mean=2.0) | sampled, limits_for("dynamic_int8")))
    exceptions = [{"weight": f"blocks.{i}.mlp", "asked": "int8", "precision": "float32"} for i in range(5)]
    artifact = {"weights": {"float32": 5, "int8 channelwise": 12}, "exceptions": exceptions}
    difference = {"at": 2, "kind": "tie", "prompt": "code", "margin": 0.17}
    defect = {"at": 3, "kind": "defect", "prompt": "english", "margin": 2.5}
    whole = {"matches": 56, "ties": 0, "defects": 0, "of": 56, "first_difference": None}
    fields: dict[str, Any] = {
        "model": "smollm-135m",
        "family": "llama",
        "weights": {"kind": "tiny", "sha256": "7e303f9f" * 8, "revision": None},
        "prompt_set": {"name": "short", "sha256": "0772100b" * 8, "prompts": 7, "positions": 224},
        "rungs": [
            RungRecord(name="float", seconds=0.07, peak_rss_mb=361.2),
            RungRecord(name="dynamic_int8", seconds=12.3, peak_rss_mb=355.0, artifact=artifact),
        ],
        "edges": edges,
        "generation": [
            *({"rung": name, **whole} for name in ("original", "float")),
            {"rung": "fp16", "matches": 54, "ties": 2, "defects": 0, "of": 56, "first_difference": difference},
            {"rung": "dynamic_int8", "matches": 44, "ties": 11, "defects": 1, "of": 56, "first_difference": defect},
        ],
        "environment": {"packages": {"torch": "2.13.0"}, "python": "3.11.7", "threads": 2},
        "seconds": 12.34,
    }
    return Report(**fields | changed)


def failed_report(text: str = "no network") -> Report:
    """A run that ended before anything was compared."""
    edges = [Edge(reference="original64", candidate="float", verdict=Verdict.ERROR, cause=text)]
    prompts = {"name": "short", "sha256": None, "prompts": 0, "positions": 0}
    return plain_report(rungs=[], generation=[], edges=edges, cause=text, prompt_set=prompts)


def situated_report(**changed: Any) -> Report:
    """A run of situations: one fails on the float rung, one does not apply to it, one not to the model."""
    counts = {"short": (7, 224), "window": (5, 54), "batch": (4, 116)}
    edges = []
    for edge in plain_report().edges:
        held = edge.candidate != "dynamic_int8"
        found: dict[str, Any] = {
            name: {"prompts": n, **figures(kl_mean=0.25), "positions": m, "verdict": "PASS" if held else None}
            for name, (n, m) in counts.items()
        }
        if edge.candidate == "float":
            found["window"] |= {"floor_ratio": 4321.0, "verdict": "FAIL", "cause": "floor_ratio 4321, limit 8.0"}
        if edge.candidate in ("float", "dynamic_int8"):
            found["batch"] = {"verdict": None, "cause": "an exported file takes one row"}
        edges.append(replace(edge, situations=found))
    prompts = {
        **plain_report().prompt_set,
        "name": "all",
        "situations": {name: {"prompts": n, "positions": m} for name, (n, m) in counts.items()},
        "left_out": {"turns": "a prompt goes in one call"},
    }
    return plain_report(**{"edges": edges, "prompt_set": prompts} | changed)


def hostile_report(text: str) -> Report:
    """``text`` wherever a report holds any."""
    edges = [
        Edge(
            reference=text,
            candidate=name,
            verdict=verdict,
            metrics=figures(),
            limits={"kl_mean": 0.1, text: 1.0},
            situations={text: {"verdict": text, "cause": text, "kl_mean": text}, f"{text}4": {"cause": text}},
            first_divergent_stage=text,
            cause=text,
        )
        for name, verdict in ((text, Verdict.FAIL), ("float", Verdict.ERROR), (f"{text}2", Verdict.PASS))
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
        generation=[{"rung": text, "matches": 1, "of": 2, "first_difference": difference}],
        environment={"packages": {text: text}, f"{text}3": text},
        cause=text,
    )


def printed(draw: Callable[..., None], what: Any, width: int, *, colour: bool = False) -> str:
    file = io.StringIO()
    system = "truecolor" if colour else None
    draw(what, Console(file=file, width=width, force_terminal=colour, color_system=system, legacy_windows=False))
    return file.getvalue()


def everything(reports: Sequence[Report]) -> list[str]:
    """All renderings."""
    terminal = [printed(render, report, width) for report in reports for width in (80, 120)]
    return [*terminal, printed(render_summary, reports, 80), to_markdown(reports), to_html(reports)]


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
    details = re.compile(r"<details>\n<summary>(?:Environment.*|Limits and their reasons)</summary>\n|</details>\n?")
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
    assert_safe_markdown(to_markdown([hostile_report(text)]), text)
    assert_safe_markdown(to_markdown([hostile_report(text), failed_report(text)]), text)


@given(ANY_TEXT | st.text("|`*_<>&\\[]()!#@~-+.=:/ \n1a", max_size=30))
@example("a_ _b")
@example("__0__")
@example("0)")
@relaxed
def test_any_text_in_markdown(text: str) -> None:
    assert_safe_markdown(to_markdown([hostile_report(text)]), text)


def test_a_terminal_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    for report in (plain_report(), failed_report("wide 漢字"), hostile_report("‖≤—é")):
        render(report, console)
        render_summary([report], console)
    assert_tame(raw.getvalue().decode("ascii"), 80)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*METRICS, *NESTED), ANY_FIGURE)))
@example({"interval": {"kl_mean": [None, math.inf], "new": 3}, "detectable": {"kl_mean": None}})
@example({"kl_mean": 1.7976931348623157e308, "floor_ratio": 5e-324})
@example({"kl_mean": -1.0, "perplexity_ratio": 0.0, "top1_agreement": 0.0})
@relaxed
def test_figures_of_any_kind(metrics: dict[str, Any]) -> None:
    bounds = {"floor_ratio": 8.0, "kl_mean": 0.1, "top1_agreement": 0.9, "perplexity_ratio": [0.9, 1.1], "rel_l2": None}
    edges = [
        Edge(reference="original64", candidate=name, verdict=Verdict.ERROR, metrics=metrics, limits=bounds)
        for name in ("float", "dynamic_int8")
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
        rows = [line.split() for line in below[2:5]]
        assert rows == [
            ["window", "5", "54", "0.50", "4321", "0.250"],
            ["short", "7", "224", "0.50", "0.50", "0.250"],
            ["batch", "4", "116", "0.50", DASH, DASH],
        ]
        for sentence in (
            "turns: a prompt goes in one call",
            "batch on float, dynamic_int8: an exported file takes one",
        ):
            assert squeezed(sentence) in squeezed(output)
    assert "\x1b[1;31m4321" in printed(render, report, 120, colour=True)
    markdown = to_markdown([report])
    assert "| `window` | 5 | 54 | 0.50 | **4321** | 0.250 |" in markdown
    assert "| `batch` | 4 | 116 | 0.50 | — | — |" in markdown
    page = to_html([report])
    assert '<td class="figure broken">4321</td>' in page
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
    assert "1.09 / 1.18" in table[0]
    assert "2.00" in table[3]
    assert "…" not in "".join(lines)
    assert lines[-2] == "FAIL smollm-135m  4 edges, 224 positions, 12.3 s"


def test_figures_that_mean_nothing_for_a_rung_are_a_dash() -> None:
    row = next(line for line in printed(render, plain_report(), 200).split("\n") if line.startswith("dynamic_int8"))
    assert row.split()[2:4] == [DASH, DASH]
    assert "49520" not in "".join(everything([plain_report()]))


def test_what_a_person_needs_to_know_is_said() -> None:
    text = " ".join(printed(render, plain_report(), 120).split())
    assert "dynamic_int8: kl_mean 2, limit" in text
    assert "5 of 17 weights float32 instead of int8 (blocks.0.mlp, blocks.1.mlp, blocks.2.mlp and 2 more)" in text
    assert "original, float: 56/56 tokens" in text
    assert "fp16: 54/56 tokens, 2 ties" in text
    assert "token 2 of code" not in text
    assert "dynamic_int8: 44/56 tokens, 11 ties, 1 defect, the first at token 3 of english" in text
    leading = "KL mean 2.00 (1.50 to 2.50), would have noticed 0.700"
    assert f"dynamic_int8: {leading}" in text
    others = (leading, "top-1 clear 50.0% (25.0% to 75.0%), would have noticed 12.5%", "would have noticed 2.5%")
    for rendering in (to_markdown([plain_report()]), Page(to_html([plain_report()])).text):
        assert all(sentence in rendering for sentence in others)
    for rendering in (to_markdown([plain_report()]), Page(to_html([plain_report()])).text):
        assert "54/56 tokens, 2 ties" in rendering
        assert "44/56 tokens, 11 ties, 1 defect, the first at token 3 of english" in rendering
    assert "7e303f9f" in text
    assert "7e303f9f7" not in text


def test_colour_stays_on_the_word_it_belongs_to() -> None:
    lines = printed(render, plain_report(), 120, colour=True).split("\n")
    assert lines[-2].startswith("\x1b[1;31mFAIL\x1b[0m")
    assert lines[-2].endswith("\x1b[0m  4 edges, 224 positions, 12.3 s")


def test_several_models_are_one_row_each() -> None:
    reports = [plain_report(), plain_report(model="qwen2.5-0.5b", edges=plain_report().edges[:3]), failed_report()]
    summary = printed(render_summary, reports, 80)
    assert [line.split()[:2] for line in summary.split("\n")[3:6]] == [
        ["smollm-135m", "FAIL"],
        ["qwen2.5-0.5b", "PASS"],
        ["smollm-135m", "ERROR"],
    ]
    assert "ERROR 3 models: 1 PASS, 1 FAIL, 1 ERROR" in summary
    assert to_markdown(reports).startswith("## ⚠️ ERROR 3 models: 1 PASS, 1 FAIL, 1 ERROR")
    page = Page(to_html(reports))
    assert [value for name, value in page.attributes if name == "href"] == ["#model-1", "#model-2", "#model-3"]
    assert to_markdown(reports).count("<summary>Environment</summary>") == 1


@pytest.mark.parametrize("report", [plain_report(), failed_report(), hostile_report("[x] <b> | \n")])
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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (4.19e-12, "4.2e-12"), (0.00923, "0.00923"), (0.0015, "0.00150"), (155.2, "155"), (999.7, "1000"),
     (49520.4, "49520"), (1.2e7, "1.2e7"), (-0.5, "-0.500"), (None, DASH), (math.nan, DASH), (True, DASH)],
)  # fmt: skip
def test_figure(value: object, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1, "100%"), (0.99999, "99.9%"), (0.976, "97.6%"), (1e-9, "0.1%"), (0, "0%"), (None, DASH)]
)
def test_percent_does_not_round_to_all_or_none(value: object, text: str) -> None:
    assert percent(value) == text


@given(st.sampled_from(("float", "dynamic_int8", "dynamic_int4", "fp16")), st.floats(1e-9, 1e3))
def test_a_limit_is_used_up_exactly_when_it_is_broken(rung: str, value: float) -> None:
    """The chart and the colours agree with ``Limit.holds``, which made the verdict."""
    for limit in limits_for(rung):
        found = value / 1e3 if limit.metric.startswith("top1") else value
        edge = Edge(
            reference="a",
            candidate=rung,
            verdict=Verdict.PASS,
            metrics={limit.metric: found},
            limits={limit.metric: limit.bound},
        )
        share = share_of_limit(edge, limit.metric)
        assert share is not None
        assert within(edge, limit.metric) == limit.holds(found)
        assert (share <= 1) == limit.holds(found) or math.isclose(share, 1)
        chart = Chart.of(plain_report(edges=[edge]))
        assert chart.rows[0].lead is not None
        assert 0 <= chart.rows[0].lead.x <= 1


def test_reasons_are_given_for_todays_limits_only() -> None:
    edge = plain_report().edges[-1]
    (today, *_) = limits_for("dynamic_int8")
    assert limits_shown([plain_report(edges=[edge])])[0].reason == today.reason
    old = replace(edge, limits={**edge.limits, "kl_mean": 123.0, "gone": 1.0})
    reasons = {limit.metric: limit.reason for limit in limits_shown([plain_report(edges=[old])])}
    assert reasons["kl_mean"].startswith("The limit has changed since")
    assert "not in today's table" in reasons["gone"]
