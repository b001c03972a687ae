"""The record of a run: what was compared, how far apart, and what that means. Its JSON form is a contract."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from parity import files
from parity.compare.limits import UNQUANTIZED, Question, question_of
from parity.compare.verdict import Edge, Verdict, worst
from parity.errors import UsageError

SCHEMA_VERSION = 1
_KINDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "family": str,
    "weights": dict,
    "prompt_set": dict,
    "rungs": list,
    "edges": list,
    "generation": list,
    "environment": dict,
    "seconds": (int, float),
}
_TEXT_OR_NONE = (str, type(None))
_NUMBER_OR_NONE = (int, float, type(None))
_PARTS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "edges": {
        "reference": str,
        "candidate": str,
        "output": str,
        "question": str,
        "metrics": dict,
        "limits": dict,
        "own_loss": dict,
        "budget": _TEXT_OR_NONE,
        "remark": _TEXT_OR_NONE,
        "first_divergent_stage": _TEXT_OR_NONE,
        "cause": _TEXT_OR_NONE,
    },
    "rungs": {"name": str, "seconds": _NUMBER_OR_NONE, "peak_rss_mb": _NUMBER_OR_NONE, "artifact": dict},
    "generation": {"rung": str, "matches": int, "of": int, "first_difference": (dict, type(None))},
}
_KEPT = ("model", "family", "weights", "prompt_set", "generation", "environment")
#: What older files do not have, and what it is of.
_LATER: dict[str, type | tuple[type, ...]] = {
    "cause": _TEXT_OR_NONE,
    "streamed": (dict, type(None)),
    "conditioning": dict,
    "command": _TEXT_OR_NONE,
    "date": _TEXT_OR_NONE,
    "prompts_said": dict,
    "texts": dict,
}


@dataclass(frozen=True, kw_only=True)
class RungRecord:
    """A rung that was run: what it cost, and the file it ran, if any."""

    name: str
    seconds: float | None = None
    peak_rss_mb: float | None = None
    artifact: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One model's run.

    ``streamed`` says why models were run one stage at a time, where they were. ``conditioning`` says of each prompt how
    much it amplifies rounding: ``typical`` and ``worst``, ``times`` the typical prompt, and whether it is ``ill``.
    ``command`` and ``date`` (ISO 8601) say what was run and when. ``prompts_said`` are the ids that the reference
    generated after each prompt; a generation has those that its rung ``chosen`` as well. ``texts`` tells what ids say:
    ``prompts`` has the ids of each prompt and of its continuation, ``pieces`` the text of every id.
    """

    model: str
    family: str
    weights: Mapping[str, Any]
    prompt_set: Mapping[str, Any]
    rungs: Sequence[RungRecord]
    edges: Sequence[Edge]
    generation: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]
    seconds: float
    cause: str | None = None
    streamed: Mapping[str, Any] | None = None
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    date: str | None = None
    prompts_said: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst of the edges; a run that ended early is an ERROR whatever was judged before."""
        return Verdict.ERROR if self.cause else worst(edge.verdict for edge in self.edges)

    def to_json(self) -> dict[str, Any]:
        """The contract's object. Figures that are not finite become null; JSON has no name for them."""
        fields = asdict(self)
        ordered = ("model", "family", "weights", "prompt_set", "rungs", "edges", "generation")
        tail = {
            "verdict": self.verdict,
            "cause": self.cause,
            "streamed": self.streamed,
            "conditioning": self.conditioning,
            "prompts_said": self.prompts_said,
            "texts": self.texts,
            "environment": self.environment,
            "command": self.command,
            "date": self.date,
            "seconds": self.seconds,
        }
        whole = {"schema_version": SCHEMA_VERSION, **{key: fields[key] for key in ordered}, **tail}
        cleaned: dict[str, Any] = without_infinities(whole)
        return cleaned

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Report:
        """Read the contract's object back.

        Raises:
            UsageError: it is not one.
        """
        try:
            if record["schema_version"] != SCHEMA_VERSION:
                found = record["schema_version"]
                raise UsageError(f"schema_version {found} is not {SCHEMA_VERSION}; run the check again")
            wrong = [key for key, kind in _KINDS.items() if not isinstance(record[key], kind)]
            later = {key: record[key] for key in _LATER if key in record}
            wrong += [key for key, value in later.items() if not isinstance(value, _LATER[key])]
            if wrong := wrong or list(_wrong_parts(record)):
                raise UsageError(f"{wrong[0]} of this report is not what it should be; run the check again")
            edges = [_edge(edge) for edge in record["edges"]]
            kept = {key: record[key] for key in _KEPT}
            rungs = [RungRecord(**rung) for rung in record["rungs"]]
            return cls(**kept, rungs=rungs, edges=edges, seconds=record["seconds"], **later)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"this is not a report ({type(error).__name__}: {error}); run the check again") from None


def _edge(record: Mapping[str, Any]) -> Edge:
    """An edge; one that was written before edges had questions is asked what its rung is asked today."""
    if "question" not in record:
        candidate = record["candidate"]
        question: Question = question_of(candidate) if candidate in UNQUANTIZED else "quality"
        record = {**record, "question": question}
    if record["question"] not in get_args(Question):
        raise ValueError(f"no edge asks {record['question']!r}")
    return Edge(**{**record, "verdict": Verdict(record["verdict"])})


def _wrong_parts(record: Mapping[str, Any]) -> Iterator[str]:
    """Where edges, rungs and generations hold something of another kind than a check writes there."""
    for part, kinds in _PARTS.items():
        for number, item in enumerate(record[part]):
            if not isinstance(item, dict):
                yield f"{part}[{number}]"
                continue
            for key, kind in kinds.items():
                if key in item and not isinstance(item[key], kind):
                    yield f"{part}[{number}].{key}"


def without_infinities(value: Any) -> Any:
    """Plain values with null for every figure that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinities(item) for item in value]
    return value


def overall(reports: Sequence[Report]) -> Verdict:
    """The verdict of several models together."""
    return worst(report.verdict for report in reports)


def write_json(reports: Sequence[Report], path: Path) -> None:
    """One object for one model, else all under ``models``."""
    if len(reports) == 1:
        document: dict[str, Any] = reports[0].to_json()
    else:
        document = {
            "schema_version": SCHEMA_VERSION,
            "models": [report.to_json() for report in reports],
            "verdict": overall(reports),
        }
    files.write_json(path, document)


def read_json(path: Path) -> list[Report]:
    """The reports of a file that ``write_json`` wrote.

    Raises:
        UsageError: it is missing or not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; `parity check MODEL --json {path}` writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a report ({error}); run the check again") from None
    records = document.get("models", [document]) if isinstance(document, dict) else None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UsageError(f"{path} is not a report; run the check again")
    return [Report.from_json(record) for record in records]
