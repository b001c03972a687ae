"""What a check does about a rung that fails: it finds the stage, on the prompt that shows the failure best."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from models.errors import ModelError
from parity.bisect.bisector import Bisector, Found
from parity.compare.floor import Conditioning
from parity.compare.limits import EXACT
from parity.compare.measuring import ENCODER
from parity.compare.verdict import Edge, Verdict, worst
from parity.errors import ParityError, RungError
from parity.ladder import Ladder, Plan, Rung
from parity.runners.base import shortest
from parity.trace import STAGE_PHASES, Phase

#: What an edge of an encoder can be blamed on.
_ENCODING: tuple[Phase, ...] = ("encode",)


class Locator:
    """Names the first divergent stage of failing rungs. A rung is bisected only if the one before it is sound."""

    def __init__(self, name: str, *, original: bool) -> None:
        self.name = name
        self.original = original
        self._judged: dict[str, list[Edge]] = {}

    def locate(self, rung: Rung, edges: Sequence[Edge], ladder: Ladder) -> list[Edge]:
        """The rung's edges, those that FAIL with their stage; what stands in the way of that is said in the cause.

        What a recipe costs is no mistake, and has no stage. Whatever goes wrong here changes no verdict.
        """
        before = next((self._judged[name] for name in _before(rung.name) if name in self._judged), [])
        located = list(edges)
        off = [at for at in edges if _failing(at) and at.question != "quality" and not at.first_divergent_stage]
        if rung.recorded and off:
            # An encoder that is off takes the logits with it: a prompt that shows the encoder shows both.
            located = self._located(rung, edges, before, _worst_prompt(off[0]), ladder)
        self._judged[rung.name] = [edge for edge in located if edge.question != "quality"]
        return located

    def by_stage(
        self, rung: Rung, edges: Sequence[Edge], ladder: Ladder, ill: Mapping[str, Conditioning]
    ) -> list[Edge]:
        """The edges of a float file that passes although ``ill`` prompts amplify rounding, held stage by stage.

        On such a prompt the floor is so high that a mistake could hide below it. Its stages, each fed the reference's
        inputs, amplify nothing. The prompt that amplifies most stands for all.
        """
        if not ill or worst(edge.verdict for edge in edges) is not Verdict.PASS:
            return list(edges)
        prompt = max(ill, key=lambda name: ill[name].times)
        why = f"prompt {prompt} amplifies rounding {ill[prompt].times:.0f} times as much as the typical one"
        if ladder.streaming:
            return [
                replace(edge, remark=f"{why}; its stages were not looked at, as the model runs by stages")
                for edge in edges
            ]
        try:
            found = self._bisect(rung.name, prompt, ladder).bisection
        except (ParityError, ModelError) as error:
            cause = f"{why}, and its stages could not be looked at by themselves: {error}"
            return [replace(edge, verdict=Verdict.ERROR, cause=cause) for edge in edges]
        if found.first is None:
            return [replace(edge, remark=f"{why}; each of its stages by itself is right") for edge in edges]
        cause = f"{why}, and a stage of it is off by itself: {found.remark}"
        return [replace(edge, verdict=Verdict.FAIL, cause=cause, first_divergent_stage=found.first) for edge in edges]

    def _located(
        self, rung: Rung, edges: Sequence[Edge], before: Sequence[Edge], prompt: str, ladder: Ladder
    ) -> list[Edge]:
        if before and (verdict := worst(edge.verdict for edge in before)) is not Verdict.PASS:
            name, stages = before[0].candidate, [edge.first_divergent_stage for edge in before]
            stage = next(filter(None, reversed(stages)), None)
            off, unknown = f"{name} is off already", f"the stage is not known, {name} could not be run"
            said = off if verdict is Verdict.FAIL else unknown
            return [_placed(edge, stage, said) for edge in edges]
        if rung.name in (EXACT, "reauthored") and not self.original:
            said = f'run "parity bisect {self.name}" with the original to find the stage'
            return [_placed(edge, None, said) for edge in edges]
        if ladder.streaming:
            said = f'run "parity bisect {self.name}" where the whole model fits into memory to find the stage'
            return [_placed(edge, None, said) for edge in edges]
        try:
            found = self._bisect(rung.name, prompt, ladder)
        except Exception as error:  # noqa: BLE001  (the verdict stands, whatever keeps its stage from being found)
            said = f"the stage could not be found: {' '.join(str(error).split())[:300]}"
            return [_placed(edge, None, said) for edge in edges]
        bisection = found.bisection
        return [
            _placed(
                edge,
                bisection.first_in(_ENCODING if edge.output == ENCODER else STAGE_PHASES),
                f"{bisection.remark} (on prompt {prompt})",
            )
            for edge in edges
        ]

    def _bisect(self, name: str, prompt: str, ladder: Ladder) -> Found:
        chosen = next(each for each in ladder.inputs.prompts if each.id == prompt)
        length = shortest([export.cache_length for export in ladder.exports], chosen.until(ladder.generate))
        place = [export.cache_length for export in ladder.exports].index(length)
        session = ladder.exports[place].sessions[ladder.inputs.prompts.index(chosen)]
        with tempfile.TemporaryDirectory(prefix="bisect-", dir=ladder.scratch) as scratch:
            bisector = Bisector(
                replace(
                    ladder,
                    inputs=replace(ladder.inputs, prompts=(chosen.alone,)),
                    exports=(replace(ladder.exports[place], sessions=(session,)),),
                    scratch=Path(scratch),
                )
            )
            return rung_of(name, ladder.plan, bisector, lambda: [ladder.files[place].path])()


def rung_of(name: str, plan: Plan, bisector: Bisector, files: Callable[[], Sequence[Path]]) -> Callable[[], Found]:
    """What bisects the rung ``name`` of ``plan``; ``files`` gives the float files, where those are asked for.

    Raises:
        RungError: there is no such rung.
    """
    if name == EXACT:
        return bisector.port
    if name == "reauthored":
        return bisector.reauthored
    if name == "float":
        return lambda: bisector.float_file(files())
    recipe = plan.recipe(name)
    if recipe is None:
        raise RungError(f"{name} is no rung of this run")
    return lambda: bisector.recipe(recipe)


def _before(rung: str) -> Sequence[str]:
    """The rungs that a rung builds on, the nearest first."""
    ours = (EXACT, "reauthored")
    return {EXACT: (), "reauthored": (EXACT,), "float": ours}.get(rung, ("float", *ours))


def _worst_prompt(edge: Edge) -> str:
    """The prompt that shows a mistake best: where the distance is furthest beyond what rounding does."""
    return max(edge.prompts, key=lambda name: edge.prompts[name].get("worst_position_ratio", 0.0))


def _failing(edge: Edge) -> bool:
    return edge.verdict is Verdict.FAIL


def _placed(edge: Edge, stage: str | None, said: str) -> Edge:
    """The edge, if it FAILs for a mistake, with the stage and what there is to say."""
    if not _failing(edge) or edge.question == "quality" or edge.first_divergent_stage:
        return edge
    return replace(edge, first_divergent_stage=stage, cause=f"{edge.cause}; {said}" if edge.cause else said)
