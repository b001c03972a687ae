"""Prompts divided among processes that share one loaded model.

Whatever it is told, PyTorch works out a product with a single row, of which decoding consists, on one thread, and waits
for memory most of the time. Prompts do not depend on each other. So a model is loaded once and its process forked: what
was loaded stays shared, every process has one thread and a part of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from parity import isolated
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import Guide, Runner, answer_each, calls
from parity.trace import PromptTrace, Trace


def answer(
    runner: Runner,
    inputs: Inputs,
    generate: int,
    guide: Guide | None,
    progress: isolated.Progress,
    *,
    processes: int,
) -> tuple[Trace, str]:
    """As in one process. ``runner`` must load its model on a single thread: others do not survive a fork."""
    sizes = {prompt.id: calls(prompt, generate, guide, at_once=runner.at_once) for prompt in inputs.prompts}
    answer_part = partial(answer_each, at_once=runner.at_once)
    own, *parts = _divided(inputs.prompts, sizes, processes)
    with runner.open() as session, ExitStack() as stack:
        done = _Done(sum(sizes.values()), progress)
        helpers = []
        for part in parts:
            job = isolated.fork(f"part of {runner.name}", partial(answer_part, session, part, generate, guide))
            helpers.append(_Helper(stack.enter_context(job), done))

        def answered(count: int, _: int) -> None:
            done.says(None, count)
            for helper in helpers:
                helper.look()

        traces = answer_part(session, own, generate, guide, answered)
        for helper in helpers:
            traces |= helper.result()
        return Trace({prompt.id: traces[prompt.id] for prompt in inputs.prompts}), session.note


def _divided(prompts: Sequence[TokenizedPrompt], sizes: dict[str, int], processes: int) -> list[list[TokenizedPrompt]]:
    """The heaviest first, each to whoever has least; no part is empty."""
    parts: list[list[TokenizedPrompt]] = [[] for _ in range(min(processes, len(prompts)))]
    for prompt in sorted(prompts, key=lambda prompt: -sizes[prompt.id]):
        min(parts, key=lambda part: sum(sizes[each.id] for each in part)).append(prompt)
    return parts


class _Done:
    """How far all processes are together."""

    def __init__(self, total: int, progress: isolated.Progress) -> None:
        self._total = total
        self._progress = progress
        self._counts: dict[object, int] = {}

    def says(self, who: object, count: int) -> None:
        """One of them is so far."""
        self._counts[who] = count
        self._progress(sum(self._counts.values()), self._total)


class _Helper:
    """A process with a part of the prompts. What it says must be taken now and then, or it waits."""

    def __init__(self, job: isolated.Job[dict[str, PromptTrace]], done: _Done) -> None:
        self._job = job
        self._done = done
        self._finished: isolated.Finished[dict[str, PromptTrace]] | None = None

    def look(self) -> None:
        """Take what it has said so far."""
        while self._finished is None and self._job.connection.poll():
            self._finished = self._job.receive(self._count)

    def result(self) -> dict[str, PromptTrace]:
        """Wait for its part.

        Raises:
            ParityError, ModelError: as the job's ``result``.
        """
        return (self._finished or self._job.result(self._count)).value

    def _count(self, count: int, _: int) -> None:
        self._done.says(self, count)
