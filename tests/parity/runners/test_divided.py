"""Prompts divided among processes: the same numbers as in one, and nothing is lost when one of them is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from models import registry
from parity import environment, isolated, ladder
from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.pipeline import Request, check
from parity.progress import Reporter
from parity.runners import divided
from parity.runners.base import Prefilled, Recorded, answer, record
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.weights import resolve

PROMPTS = tuple(
    TokenizedPrompt(f"p{number}", tuple(range(5, 8 + 5 * number)), (3,) * (number % 3), generates=number != 2)
    for number in range(5)
)
INPUTS = Inputs("made", "", "", "", PROMPTS)


@pytest.mark.parametrize("kind", ["original64", "original", "reauthored"])
@pytest.mark.parametrize("processes", [2, 3, 9])
def test_the_numbers_are_the_same(kind: str, processes: int, tmp_path: Path) -> None:
    """In the order of the prompts, led or free, however many processes there are."""
    folder = resolve(registry.get("gemma-2-2b"), "tiny").folder
    runners = {
        "original64": Original(folder, "float64"),
        "original": Original(folder),
        "reauthored": Reauthored("gemma", folder, (64,)),
    }
    ticks: list[tuple[int, int]] = []
    among = partial(divided.answer, processes=processes)
    for guide in (None, {prompt.id: (9, 10) for prompt in PROMPTS}):
        alone = record(runners[kind], INPUTS, tmp_path, generate=3, guide=guide)
        ticks.clear()
        parts = record(
            runners[kind],
            INPUTS,
            tmp_path,
            generate=3,
            guide=guide,
            answering=among,
            on_progress=lambda done, total: ticks.append((done, total)),
        )
        assert list(parts.trace.prompts) == list(alone.trace.prompts) == [prompt.id for prompt in PROMPTS]
        assert parts.trace.digest == alone.trace.digest
        assert parts.trace.said == alone.trace.said
        assert ticks == sorted(ticks)
        assert ticks[-1][0] <= ticks[-1][1]


@dataclass(frozen=True)
class Trouble:
    """A runner whose sessions do what is asked for when they come to the prompt ``at``, in whichever process.

    Each process leaves a file in ``folder`` that is called like it.
    """

    what: str
    folder: Path
    at: str = "p4"
    name: str = "trouble"
    one_row: bool = False
    at_once: bool = False

    @contextmanager
    def open(self) -> Iterator[Trouble]:
        yield self

    note = ""
    end_tokens: frozenset[int] = frozenset()

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:  # noqa: ARG002
        (self.folder / str(os.getpid())).touch()
        if prompt.id == self.at:
            if self.what == "raises":
                raise RungError("no such thing")
            if self.what == "crashes":
                raise ValueError("unexpected")
            if self.what == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "waits":
                time.sleep(60)
        return Prefilled(np.eye(len(prompt.prompt), 9, dtype=np.float32))

    def decode(self, token: int) -> np.ndarray:
        return np.eye(9, dtype=np.float32)[token % 9]


def run(trouble: Trouble, progress: isolated.Progress) -> object:
    return divided.answer(trouble, INPUTS, 0, None, progress, processes=2)


@pytest.mark.parametrize("at", ["p4", "p3"])
@pytest.mark.parametrize(
    ("what", "words"),
    [("raises", "no such thing"), ("crashes", "unexpected"), ("dies", "killed by SIGKILL"), ("waits", "no progress")],
)
def test_what_stops_one_of_them_stops_all(what: str, words: str, at: str, tmp_path: Path) -> None:
    """Whether it is the first process or another."""
    with pytest.raises(RungError, match=words):
        isolated.run("trouble", partial(run, Trouble(what, tmp_path, at)), patience=3.0)
    processes = [int(path.name) for path in tmp_path.iterdir()]
    assert processes
    deadline = time.monotonic() + 10
    while alive := [process for process in processes if Path(f"/proc/{process}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def test_without_trouble_it_is_as_in_one_process(tmp_path: Path) -> None:
    trouble = Trouble("nothing", tmp_path)
    trace, _ = divided.answer(trouble, INPUTS, 0, None, lambda *_: None, processes=3)
    assert len(list(tmp_path.iterdir())) == 3
    assert trace.digest == answer(trouble, INPUTS, 0, None, lambda *_: None)[0].digest


def test_parts_are_even_and_none_is_empty() -> None:
    for processes in range(1, 8):
        parts = divided._divided(PROMPTS, {prompt.id: len(prompt.prompt) for prompt in PROMPTS}, processes)
        assert len(parts) == min(processes, len(PROMPTS))
        assert sorted(each.id for part in parts for each in part) == [prompt.id for prompt in PROMPTS]
        loads = [sum(len(each.prompt) for each in part) for part in parts]
        assert max(loads) - min(loads) <= max(len(prompt.prompt) for prompt in PROMPTS)


@pytest.mark.parametrize(("small", "streamed", "divides"), [(0, False, True), (10**9, False, False), (0, True, False)])
def test_a_check_divides_what_is_large_and_whole(
    monkeypatch: pytest.MonkeyPatch, small: int, streamed: bool, divides: bool
) -> None:
    """Rungs that PyTorch runs, on one thread in every process; the runtime has threads of its own."""
    ways: dict[str, tuple[bool, int]] = {}

    def noted(runner: Any, *arguments: Any, answering: Any, **options: Any) -> Recorded:
        divided_ = getattr(answering, "func", None) is divided.answer
        ways[runner.name] = divided_, runner.threads
        return record(runner, *arguments, answering=answering, **options)

    monkeypatch.setattr(ladder, "SMALL_BYTES", small)
    monkeypatch.setattr(ladder, "record", noted)
    monkeypatch.setattr(environment, "threads", lambda: 2)
    request = Request(model=registry.get("smollm-135m"), rungs=("reauthored", "float"), streamed=streamed)
    assert check(request, Reporter(Console(stderr=True), quiet=True)).verdict == "PASS"
    torch = ("original64", "original", "reauthored")
    assert {name: ways[name] for name in torch} == dict.fromkeys(torch, (divides, 1))
    assert ways["float"] == (False, 2 if small == 0 else 1)
