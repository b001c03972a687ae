"""Files of one stage each: made when the stage is wanted, and gone afterwards.

Lowering looks at shapes only, and what is alike is lowered once, so nothing but the stage whose file is written has
weights in memory, and a file costs little more than writing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.authoring.by_stage import ModelByStage
from parity.convert.plain import Export, whole_signatures
from parity.runners.stages import Layout

if TYPE_CHECKING:
    from models.authoring.signatures import Signature


class StageFiles:
    """What ``export`` converts, by stages; ``layout``, ``stages``, ``given`` and ``cache`` are as of a staged file."""

    def __init__(self, parts: ModelByStage, export: Export) -> None:
        from parity.convert.composed import Composer

        self.parts = parts
        hollow = parts.hollow()
        self._composer = Composer(dict(hollow.named_parameters()))
        whole = list(whole_signatures(hollow, export))
        self.layout = Layout(
            export.cache_length,
            {each.name: {name: tuple(value.shape) for name, value in each.inputs.items()} for each in whole},
        )
        self.stages: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
            each.name: [(stage.name, tuple(dict.fromkeys(stage.inputs))) for stage in each.entry.stages]
            for each in whole
        }
        self.given = {each.name: tuple(each.entry.outputs) for each in whole}
        self.cache = {name: tuple(value.shape) for name, value in hollow.empty_cache(export.cache_length).items()}
        self._signatures: dict[str, list[Signature]] = {}
        for stage, signature in self._alone(whole):
            self._signatures.setdefault(stage, []).append(signature)

    def has(self, stage: str) -> bool:
        """Whether any signature goes through the stage."""
        return stage in self._signatures

    def write(self, stage: str, path: Path) -> None:
        """Write the file of a stage, whose signatures are called ``signature.stage``; its weights must be loaded."""
        parameters = dict(self.parts.model.named_parameters(remove_duplicate=False))
        self._composer.write(self._signatures[stage], path, parameters, lambda _done, _total: None)

    def _alone(self, whole: Sequence[Signature]) -> Iterator[tuple[str, Signature]]:
        """Every stage of every signature as a signature of its own."""
        from models.authoring.model import Entry
        from models.authoring.signatures import Signature

        for signature in whole:
            samples = dict(signature.inputs)
            for stage in signature.entry.stages:
                inputs = {name: samples[name] for name in stage.inputs}
                yield stage.name, Signature(f"{signature.name}.{stage.name}", Entry([stage], stage.outputs), inputs)
                samples |= self._composer.made(stage, samples)
