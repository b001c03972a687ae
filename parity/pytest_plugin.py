"""The ladder as tests: ``pytest -m parity --model=phi4``, one test per preset, rung and question.

Load it from the root ``conftest.py`` (``pytest_plugins = ["parity.pytest_plugin"]``) or with
``-p parity.pytest_plugin``.
A test that takes the fixture ``parity_edge`` is run once for every model and rung asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from models.registry import Model
    from parity.compare.limits import Question
    from parity.compare.verdict import Edge
    from parity.pipeline import Request
    from parity.report.record import Report


@dataclass(frozen=True)
class EdgeUnderTest:
    """One edge of a model's report, and everything a failure message needs."""

    report: Report
    rung: str
    question: Question
    output: str

    @property
    def edge(self) -> Edge:
        """The edge; where a rung did not get as far as to have this one, the ERROR that it has instead."""
        edges = [edge for edge in self.report.edges if edge.candidate == self.rung]
        wanted = (edge for edge in edges if (edge.question, edge.output) == (self.question, self.output))
        return next(wanted, next((edge for edge in edges if edge.verdict == "ERROR"), edges[-1]))

    @property
    def figures(self) -> dict[str, Any]:
        """The edge's numbers by name, phases spelled out."""
        flat = {key: value for key, value in self.edge.metrics.items() if not isinstance(value, dict)}
        for phase in ("prefill", "decode"):
            flat |= {f"{phase}.{key}": value for key, value in self.edge.metrics.get(phase, {}).items()}
        return flat

    def __str__(self) -> str:
        edge = self.edge
        named = f"{edge.reference} -> {edge.candidate} {self.output}, {self.question}"
        lines = [f"{self.report.model}: {named}: {edge.verdict} ({edge.cause})"]
        lines += [f"  {name:28} {value}" for name, value in self.figures.items()]
        lines += [f"  limit {name:22} {bound}" for name, bound in edge.limits.items()]
        return "\n".join(lines)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The same names as on the command line."""
    group = parser.getgroup("parity")
    group.addoption("--model", action="append", default=[], help="preset, family or all; repeatable")
    group.addoption(
        "--weights",
        default="tiny",
        help="tiny, synthetic, sample, hub, hub@REVISION, kaggle, a .gguf file, or a folder",
    )
    group.addoption("--recipe", action="append", default=[], help="quantization recipe; repeatable; all for all six")
    group.addoption("--prompts", help="prompt set")
    group.addoption("--budget", action="append", default=[], help="what a recipe may cost: a tier, or METRIC=VALUE")
    group.addoption("--no-cache", action="store_true", help="neither take anything from earlier runs nor keep anything")
    group.addoption("--update-golden", action="store_true", help="record goldens anew for the selected models")


def pytest_configure(config: pytest.Config) -> None:
    """Settle the names before anything runs; a wrong one is a usage error."""
    config.stash[_REPORTS] = {}
    try:
        config.stash[_REQUESTS] = [_request(config, model) for model in _models(config.getoption("--model"))]
    except _misuse() as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per model and rung, or per model."""
    requests: list[Request] = metafunc.config.stash[_REQUESTS]
    if "parity_edge" in metafunc.fixturenames:
        cases = [
            (request, rung, question, output)
            for request in requests
            for rung in request.plan.rungs
            for question in _questions(rung)
            for output in (("encoder", "logits") if request.model.encodes else ("logits",))
        ]
        ids = [
            f"{request.name}-{rung}-{question}" + ("" if output == "logits" else f"-{output}")
            for request, rung, question, output in cases
        ]
        metafunc.parametrize("parity_edge", cases, ids=ids, indirect=True, scope="session")
    if "parity_request" in metafunc.fixturenames:
        metafunc.parametrize("parity_request", requests, ids=[request.name for request in requests], scope="session")


@pytest.fixture(scope="session")
def parity_edge(request: pytest.FixtureRequest) -> EdgeUnderTest:
    """The edge of one model and rung; the model's ladder is run once for all its edges."""
    wanted, rung, question, output = request.param
    reports = request.config.stash[_REPORTS]
    if wanted.name not in reports:
        from rich.console import Console

        from parity.pipeline import check
        from parity.progress import Reporter

        reports[wanted.name] = check(wanted, Reporter(Console(stderr=True), quiet=True))
    return EdgeUnderTest(reports[wanted.name], rung, question, output)


def _questions(rung: str) -> tuple[Question, ...]:
    """What is asked of a rung, as far as its name tells."""
    from parity.compare.limits import UNQUANTIZED, question_of

    return (question_of(rung),) if rung in UNQUANTIZED else ("fidelity", "quality")


_REPORTS: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
_REQUESTS: pytest.StashKey[list[Any]] = pytest.StashKey()


def _models(names: list[str]) -> list[Model]:
    """The models named; without names the smallest of every family."""
    from models import registry

    if "all" in names:
        return list(registry.models())
    return [registry.get(name) for name in dict.fromkeys(names or registry.FAMILIES)]


def _request(config: pytest.Config, model: Model) -> Request:
    from parity.artifacts.cache import ArtifactCache
    from parity.budget import budget_of
    from parity.convert.recipes import RECIPES
    from parity.pipeline import Request

    recipes = config.getoption("--recipe")
    return Request(
        model=model,
        weights=config.getoption("--weights"),
        prompts=config.getoption("--prompts"),
        recipes=tuple(RECIPES) if "all" in recipes else recipes,
        budget=budget_of(config.getoption("--budget")),
        cache=None if config.getoption("--no-cache") else ArtifactCache.default(),
    )


def _misuse() -> tuple[type[Exception], ...]:
    from models.errors import UnknownModelError
    from parity.errors import UsageError

    return (UsageError, UnknownModelError)
