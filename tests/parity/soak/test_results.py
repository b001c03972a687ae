"""The file of finished draws survives being cut off anywhere, and is continued only by the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.errors import UsageError
from parity.soak.results import SCHEMA_VERSION, Outcome, Results, read

HEADER = {"schema_version": SCHEMA_VERSION, "seed": 3, "presets": ["a"], "files_every": 5, "environment": {"x": 1}}


def outcome(number: int) -> Outcome:
    edge = {"candidate": "float", "output": "logits", "verdict": "PASS", "floor_ratio": 1 + number / 7}
    return Outcome(number=number, preset="a", family="f", verdict="PASS", seconds=1.5, edges=(edge,))


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    """By number, whatever the order they finished in."""
    results = Results(tmp_path / "draws.jsonl", HEADER)
    assert results.open() == []
    for number in (2, 0, 1):
        results.append(outcome(number))
    assert results.open() == [outcome(number) for number in range(3)]
    header, found = read(results.path)
    assert header == HEADER
    assert len(found) == 3


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_file_cut_anywhere_goes_on(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Every whole line is kept, a torn one is drawn again, and what follows is appended to a clean end."""
    results = Results(tmp_path_factory.mktemp("cut") / "draws.jsonl", HEADER)
    results.open()
    for number in range(3):
        results.append(outcome(number))
    written = results.path.read_bytes()
    cut = data.draw(st.integers(0, len(written)))
    results.path.write_bytes(written[:cut])
    whole = max(0, written[:cut].count(b"\n") - 1)
    assert results.open() == [outcome(number) for number in range(whole)]
    for number in range(whole, 3):
        results.append(outcome(number))
    assert results.path.read_bytes() == written


def test_reading_while_a_line_is_being_written(tmp_path: Path) -> None:
    """It does not count yet, and is left alone."""
    results = Results(tmp_path / "draws.jsonl", HEADER)
    results.open()
    results.append(outcome(0))
    with results.path.open("ab") as file:
        file.write(b'{"number": 1, "pre')
    assert read(results.path)[1] == [outcome(0)]
    assert results.path.read_bytes().endswith(b'"pre')


@pytest.mark.parametrize("change", [{"seed": 4}, {"presets": ["b"]}, {"files_every": 0}])
def test_another_run_does_not_continue_it(tmp_path: Path, change: dict[str, object]) -> None:
    """Whatever decides the draws must be the same; the environment may be another."""
    Results(tmp_path / "draws.jsonl", HEADER).open()
    with pytest.raises(UsageError, match=f"was begun with {next(iter(change))}"):
        Results(tmp_path / "draws.jsonl", {**HEADER, **change}).open()
    assert Results(tmp_path / "draws.jsonl", {**HEADER, "environment": {}}).open() == []


@pytest.mark.parametrize(
    "content", ["hello\n", "[]\n", '{"schema_version": 0}\n', "precious notes", "notes\nwithout an end"]
)
def test_a_foreign_file_is_not_touched(tmp_path: Path, content: str) -> None:
    """It is refused in one line, and stays as it was."""
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"notes\.txt"):
        Results(path, HEADER).open()
    assert path.read_text() == content


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """As a wrong use."""
    with pytest.raises(UsageError, match="is no file"):
        read(tmp_path / "none.jsonl")
    assert json.loads(json.dumps(HEADER)) == HEADER


def test_what_is_new_is_told_once(tmp_path: Path) -> None:
    """From where the last look ended; a line without its end waits for the next."""
    results = Results(tmp_path / "draws.jsonl", HEADER)
    results.open()
    start = results.path.stat().st_size
    assert results.since(start) == ([], start)
    results.append(outcome(1))
    found, after = results.since(start)
    assert found == [outcome(1)]
    results.append(outcome(0))
    written = results.path.read_bytes()
    results.path.write_bytes(written[:-1])
    assert results.since(after) == ([], after)
    results.path.write_bytes(written)
    assert results.since(after) == ([outcome(0)], len(written))


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    """The second is told; afterwards the file is free again. A draw that was run twice after all counts once."""
    results = Results(tmp_path / "draws.jsonl", HEADER)
    with results.held(), pytest.raises(UsageError, match="another run is writing"), results.held():
        pass
    with results.held():
        results.open()
        for _ in range(2):
            results.append(outcome(4))
        assert read(results.path)[1] == [outcome(4)]
