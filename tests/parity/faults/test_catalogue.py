"""The catalogue fits the sources as they are, and says what it promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from models import registry
from parity.faults.catalogue import faults, subjects
from parity.faults.fault import Fault, Group, Subject
from parity.faults.planting import Rewrite, source_of
from parity.faults.run import cells

KNOWN = list(faults())
PAGE = Path(__file__).parents[3] / "docs" / "fault_matrix.md"
#: Columns of the page's last table, which says what each fault is.
NOT_MODELS = ("to blame", "what it is")


@pytest.mark.parametrize("fault", KNOWN, ids=lambda fault: fault.name)
def test_what_a_fault_rewrites_stands_once(fault: Fault) -> None:
    """Else it would be planted in another place, or nowhere."""
    assert fault.rewrites
    for rewrite in fault.rewrites:
        assert rewrite.found() == 1, rewrite
        assert rewrite.broken != rewrite.sound


@pytest.mark.parametrize("fault", KNOWN, ids=lambda fault: fault.name)
def test_a_fault_leaves_a_module_that_python_can_read(fault: Fault) -> None:
    """A fault must change what is computed; a syntax error changes whether anything is."""
    for module in {rewrite.module for rewrite in fault.rewrites}:
        source = source_of(module).read_text()
        for rewrite in fault.rewrites:
            if rewrite.module == module:
                source = source.replace(rewrite.sound, rewrite.broken)
        compile(source, module, "exec")


def test_there_are_faults_of_every_group_under_names_of_their_own() -> None:
    """Forty at least, and each can be in some model."""
    groups = Counter(fault.group for fault in KNOWN)
    assert set(groups) == set(get_args(Group))
    assert min(groups.values()) >= 5
    assert len(KNOWN) >= 40
    assert max(Counter(fault.name for fault in KNOWN).values()) == 1
    planted = {fault.name for fault, _ in cells(KNOWN, [Subject(model) for model in subjects()])}
    assert planted == {fault.name for fault in KNOWN}


def test_every_family_is_a_subject() -> None:
    """The matrix leaves no family out."""
    assert {model.family.name for model in subjects()} == set(registry.FAMILIES)


@pytest.mark.parametrize("model", subjects(), ids=lambda model: model.name)
def test_a_fault_starts_in_a_stage_that_the_model_has(model: registry.Model) -> None:
    """A stage that is expected but never run could not be named."""
    from models.authoring.session import shipped_sessions

    subject = Subject(model)
    built = model.family.build(subject.config, device="cpu")
    sessions = shipped_sessions(subject.config, 16, samples=16000)
    entries = {call.entry for session in sessions for call in session.calls} | {"decode"}
    entries |= {session.prefill for session in sessions if session.prefill}
    stages = {stage.name for entry in entries for stage in built.entry(entry, 64).stages}
    expected = {fault.at(subject) for fault in KNOWN} - {None, "", "signatures"}
    assert expected <= stages


def test_a_rewrite_names_a_module_that_is_there() -> None:
    """A module that was moved away is said to be gone."""
    with pytest.raises(ModuleNotFoundError, match=r"no module models\.nothing"):
        Rewrite("models.nothing", "a", "b").found()


def test_the_page_has_every_fault_in_every_model_and_nothing_missed() -> None:
    """A fault that is added or can be in another model now is planted, and the page written again.

    The page says of how many that is still to be done.
    """
    tables: dict[tuple[str, str], str] = {}
    models: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("| fault |"):
            models = rest
        elif line.startswith("| ") and len(rest) == len(models):
            tables |= {(first, model): cell for model, cell in zip(models, rest, strict=True)}
    columns = {model for _, model in tables} - set(NOT_MODELS)
    trained = [Subject(registry.get(name.removesuffix(" sample")), "sample") for name in columns if " " in name]
    known = cells(KNOWN, [*map(Subject, subjects()), *trained])
    ticked = {place for place, cell in tables.items() if cell.startswith("✓")}
    open_ = {place for place, cell in tables.items() if cell == "?"}
    assert ticked | open_ == {(fault.name, subject.name) for fault, subject in known}
    rest = {cell for place, cell in tables.items() if place not in ticked | open_ and place[1] not in NOT_MODELS}
    assert rest <= {"·"}, "missed"
    assert f"not run: {len(open_)} of {len(ticked | open_)}" in PAGE.read_text(encoding="utf-8") or not open_
