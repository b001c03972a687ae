"""A report prompt by prompt: figures, what happens at every position, what was generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.compare.verdict import Edge
from parity.report.charts import ByPosition
from parity.report.figures import escaped, full_name, ladder, shown
from parity.report.notes import amplification
from parity.report.record import Report
from parity.spelling import DASH, figure, number, spelled, whole

#: The figures of a prompt, by title and by the name that edges have for them.
PROMPT_COLUMNS = (
    ("floor typical", "floor_ratio"),
    ("floor worst", "worst_position_ratio"),
    ("rel L2", "rel_l2"),
    ("KL mean", "kl_mean"),
    ("KL max", "kl_max"),
    ("top-1 clear", "top1_agreement_clear"),
)
#: Prompts that are drawn: of more, those that stand out first.
DRAWN = 24
#: A distance in units of the floor that is as good as none.
_FAR_BELOW = 0.01
#: What stands for characters that one does not see.
_SEEN = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": "⇥"})


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """An edge's figures under one prompt, in the order of ``PROMPT_COLUMNS``; blank where the question has none."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token that a rung chose; ``differs`` is the kind of difference from the reference's, as far as known."""

    text: str
    differs: str = ""
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class Said:
    """What rungs chose step by step after a prompt; those that chose alike stand together."""

    rungs: tuple[str, ...]
    tokens: tuple[Token, ...]

    @property
    def same(self) -> bool:
        """Whether they said what the reference said."""
        return not any(token.differs for token in self.tokens)


@dataclass(frozen=True, kw_only=True)
class PromptPage:
    """All that a report knows of a prompt; ``stands_out`` says why one should look at it, if one should."""

    name: str
    positions: str
    times: str
    stands_out: tuple[str, ...]
    lines: tuple[PromptLine, ...]
    kl: ByPosition | None = None
    ratio: ByPosition | None = None
    said: tuple[Said, ...] = ()


def prompts_of(report: Report, *, drawn: bool = False) -> list[PromptPage]:
    """In the order of the run, with charts and generations if they are to be ``drawn``."""
    edges = [edge for edge, _ in ladder(report)]
    names = dict.fromkeys(name for edge in edges for name in _prompts(edge))
    reasons = {name: _stands_out(report, edges, name) for name in names}
    first = sorted(names, key=lambda name: not reasons[name])[: DRAWN if drawn else 0]
    return [_page(report, edges, name, reasons[name], drawn=name in first) for name in names]


def _prompts(edge: Edge) -> Mapping[str, Mapping[str, Any]]:
    found = edge.prompts if isinstance(edge.prompts, Mapping) else {}
    return {name: row for name, row in found.items() if isinstance(row, Mapping)}


def _page(report: Report, edges: Sequence[Edge], name: str, reasons: tuple[str, ...], *, drawn: bool) -> PromptPage:
    rows = [(edge, row) for edge in edges if (row := _prompts(edge).get(name)) is not None]
    positions = next((row["positions"] for _, row in rows if number(row.get("positions")) is not None), None)
    page = PromptPage(
        name=shown(name),
        positions=whole(positions),
        times=figure(amplification(report, name)),
        stands_out=reasons,
        lines=tuple(_line(edge, row) for edge, row in rows),
    )
    if not drawn:
        return page
    pieces = [_piece(report, token) for token in _ids(report.texts.get("prompts"), name)]
    logits = [(edge, row) for edge, row in rows if edge.output == "logits"]
    # A fidelity edge has a KL as well, which is as good as none.
    costs = [(edge, row) for edge, row in logits if edge.question == "quality"]
    return PromptPage(
        **{
            **vars(page),
            "kl": ByPosition.of({full_name(edge): _values(row, "kl") for edge, row in costs}, pieces),
            "ratio": ByPosition.of(
                {full_name(edge): each for edge, row in logits if (each := _values(row, "ratio"))},
                pieces,
                _worst_limit(edges),
                bottom=_FAR_BELOW,
            ),
            "said": _said(report, name),
        }
    )


def _line(edge: Edge, row: Mapping[str, Any]) -> PromptLine:
    cells = (spelled(metric, row[metric]) if metric in row else "" for _, metric in PROMPT_COLUMNS)
    return PromptLine(name=full_name(edge), cells=tuple(cells))


def _stands_out(report: Report, edges: Sequence[Edge], name: str) -> tuple[str, ...]:
    """That a prompt amplifies rounding, or that a recipe costs it far more than others."""
    facts = report.conditioning.get(name)
    reasons = []
    if isinstance(facts, Mapping) and facts.get("ill"):
        reasons.append("ill-conditioned")
    for edge in edges:
        outliers = edge.metrics.get("outliers")
        if isinstance(outliers, Mapping) and name in outliers:
            reasons.append(f"outlier of {full_name(edge)}: KL {figure(outliers[name])}")
    return tuple(reasons)


def _worst_limit(edges: Sequence[Edge]) -> float | None:
    """The limit on a single position of float32 rungs."""
    found = (number(edge.limits.get("worst_position_ratio")) for edge in edges if edge.question == "rounding")
    return next((limit for limit in found if limit), None)


def _values(row: Mapping[str, Any], key: str) -> Sequence[object]:
    values = row.get(key)
    return values if isinstance(values, (list, tuple)) else ()


def _ids(prompts: object, name: str) -> list[int]:
    """The token ids that a mapping has under a prompt's name."""
    found = prompts.get(name) if isinstance(prompts, Mapping) else None
    ids = found if isinstance(found, (list, tuple)) else ()
    return [token for token in ids if isinstance(token, int) and not isinstance(token, bool)]


def _piece(report: Report, token: int) -> str:
    """What a person sees of a token: its text, spaces and line breaks as well; its id where nobody knows."""
    pieces = report.texts.get("pieces")
    text = pieces.get(str(token)) if isinstance(pieces, Mapping) else None
    return escaped(str(text).translate(_SEEN)) if text is not None else f"⟨{token}⟩"


def _said(report: Report, name: str) -> tuple[Said, ...]:
    """The reference's generation first, then every rung's choices; nothing where they are not recorded."""
    reference = _ids(report.prompts_said, name)
    if not reference:
        return ()
    grouped: dict[tuple[Token, ...], list[str]] = {}
    for entry in report.generation:
        chosen = _ids(entry.get("chosen"), name)
        if len(chosen) == len(reference):
            tokens = _tokens(report, reference, chosen, _kinds(entry, name))
            grouped.setdefault(tokens, []).append(shown(entry.get("rung", DASH)))
    whole_text = tuple(Token(text=_piece(report, token)) for token in reference)
    return (
        Said(rungs=("reference",), tokens=whole_text),
        *(Said(rungs=tuple(rungs), tokens=tokens) for tokens, rungs in grouped.items()),
    )


def _kinds(entry: Mapping[str, Any], prompt: str) -> dict[int, str]:
    """What kind a difference is, by its step, as far as the record tells: it does so for one of a rung's."""
    found = entry.get("first_difference")
    if not isinstance(found, Mapping) or found.get("prompt") != prompt or not isinstance(found.get("at"), int):
        return {}
    return {found["at"]: "defect" if found.get("kind") == "defect" else "other"}


def _tokens(
    report: Report, reference: Sequence[int], chosen: Sequence[int], kinds: Mapping[int, str]
) -> tuple[Token, ...]:
    differs = [ours != theirs for ours, theirs in zip(chosen, reference, strict=True)]
    first = differs.index(True) if True in differs else None
    return tuple(
        Token(text=_piece(report, token), differs=kinds.get(at, "other") if different else "", first=at == first)
        for at, (token, different) in enumerate(zip(chosen, differs, strict=True))
    )
