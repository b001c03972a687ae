"""Files of one stage each: made when the stage is wanted, and gone afterwards.

Lowering looks at shapes only, and what is alike is lowered once, so nothing but the stage whose file is written has
weights in memory, and a file costs little more than writing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.authoring.by_stage import ModelByStage
from models.authoring.stage import Stage
from parity.convert.cutting import MOST, Cutter
from parity.convert.float_file import Export, whole_signatures
from parity.runners.stages import Layout

if TYPE_CHECKING:
    from models.authoring.signatures import Signature


class StageFiles:
    """What ``export`` converts, by stages; ``layout``, ``stages``, ``given`` and ``cache`` are as of a staged file."""

    def __init__(self, parts: ModelByStage, export: Export, most: int = MOST) -> None:
        from parity.convert.composed import Composer
        from parity.convert.timings import Timings

        self.parts = parts
        hollow = parts.hollow
        names = {id(parameter): name for name, parameter in hollow.named_parameters()}
        self._cutter = Cutter(names, most)
        whole = list(whole_signatures(hollow, export))
        #: The pieces that large stages are cut into, by their names.
        self.pieces = {
            piece.name: piece for each in whole for stage in each.entry.stages for piece in self._cutter.pieces(stage)
        }
        alone = [self._cut(each) for each in whole]
        self._composer = Composer({**dict(hollow.named_parameters()), **self._cutter.parameters}, Timings())
        self.layout = Layout(
            export.cache_length,
            {each.name: {name: tuple(value.shape) for name, value in each.inputs.items()} for each in whole},
        )
        self.stages: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
            each.name: [(stage.name, tuple(dict.fromkeys(stage.inputs))) for stage in stages]
            for each, stages in zip(whole, alone, strict=True)
        }
        self.given = {each.name: tuple(each.entry.outputs) for each in whole}
        self.cache = {name: tuple(value.shape) for name, value in hollow.empty_cache(export.cache_length).items()}
        self._signatures: dict[str, list[Signature]] = {}
        for each, stages in zip(whole, alone, strict=True):
            for stage, signature in self._alone(each, stages):
                self._signatures.setdefault(stage, []).append(signature)

    def has(self, stage: str) -> bool:
        """Whether any signature goes through the stage."""
        return stage in self._signatures

    def write(self, stage: str, path: Path) -> tuple[str, ...]:
        """Write the file of a stage, whose signatures are called ``signature.stage``; its weights must be loaded.

        Returns the names of the weights, in file order.
        """
        from parity.convert.composed import write_signatures
        from parity.convert.writing import Writer

        values = self._cutter.values(dict(self.parts.model.named_parameters(remove_duplicate=False)))
        with Writer(path, values) as writer:
            return write_signatures(self._composer, writer, self._signatures[stage], {}, lambda _done, _total: None)

    def _cut(self, whole: Signature) -> list[Stage]:
        """The stages of a signature, large ones in pieces."""
        stages = []
        for stage in whole.entry.stages:
            pieces = self._cutter.pieces(stage)
            stages += [self._cutter.stage(stage, piece) for piece in pieces] or [stage]
        return stages

    def _alone(self, whole: Signature, stages: Sequence[Stage]) -> Iterator[tuple[str, Signature]]:
        """Every stage of a signature as a signature of its own."""
        from models.authoring.model import Entry
        from models.authoring.signatures import Signature

        samples = dict(whole.inputs)
        for stage in stages:
            inputs = {name: samples[name] for name in stage.inputs}
            yield stage.name, Signature(f"{whole.name}.{stage.name}", Entry([stage], stage.outputs), inputs)
            samples |= self._composer.made(stage, samples)
