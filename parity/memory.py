"""How much memory a run takes, how much there is, and hence whether its models go through it whole or by stages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from models.authoring.config import EncoderDecoderConfig, ModelConfig
from parity import isolated
from parity.convert.cutting import CUT, MOST
from parity.convert.recipes import RECIPES
from parity.errors import RungError, UsageError

#: What a job takes before it holds any weights: the libraries, and what they keep.
BASE = 700_000_000
#: What the process that compares and the server of jobs take beside it: 0.5 to 0.7 GB in docs/performance.md.
BESIDE = 800_000_000
#: What a conversion takes, beside a weight at a time, while the rungs above the file run; measured 0.7 GB.
CONVERTER = 1_500_000_000
#: Bytes for each parameter while a rung runs whole, from the figures in docs/performance.md: the oracle and the float32
#: rungs hold the stored weights beside their own while they load; the runtime holds several copies, as quantizing does.
#: Recipes that are not listed may be of the kind that takes most.
WHOLE = {
    "original64": 10,
    "original": 6,
    "reauthored64": 10,
    "reauthored": 6,
    "converting": 0,
    "float": 13,
    **{name: 18 if name.startswith("weight_only") else 13 for name in RECIPES},
}
#: The same for each parameter of the largest stage. What the oracle reads is converted in small pieces.
BY_STAGE = {"original64": 8, "original": 6, "reauthored64": 10, "reauthored": 6, "converting": 6}
#: What a quantizer takes for each parameter of a piece that is not cut further, beside the converter's libraries.
QUANTIZING = 16


@dataclass(frozen=True)
class Size:
    """Parameters in all, in the largest stage, and in the largest piece that is made a file of."""

    parameters: int
    largest: int = 0
    piece: int = 0


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """That a run goes stage by stage: why, what it is expected to take at its peak and what there is, in bytes."""

    reason: str
    expected: int
    available: int

    def __str__(self) -> str:
        return (
            f"stage by stage, {self.reason}: expected to take {_gb(self.expected)} at its peak, "
            f"{_gb(self.available)} are available"
        )

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def streaming(
    asked: bool | None,
    family: str,
    folder: Path,
    config: ModelConfig,
    rungs: Sequence[str],
    stored: int,
    held: int,
) -> Streaming | None:
    """Whether ``rungs`` (and ``converting``, if there are files) are run stage by stage, and not whole.

    ``stored`` are the bytes of the checkpoint, ``held`` those of the logits that a rung makes.

    Raises:
        UsageError: asked for where it is not to be had.
        RungError: not even the largest stage fits.
        ModelError: the checkpoint does not fit its configuration.
    """
    if isinstance(config, EncoderDecoderConfig):
        if asked:
            raise UsageError("a model with an encoder and a decoder is small and runs whole; leave --streamed out")
        return None
    there = available()
    # A parameter is stored in two bytes at least.
    if asked is False or (asked is None and _whole(Size(stored // 2), rungs, held) < there):
        return None
    size = isolated.run("weighing", partial(_weigh, family, folder)).value
    whole = _whole(size, rungs, held)
    if not asked and whole < there:
        return None
    expected = max(BY_STAGE.get(rung, 0) for rung in rungs) * size.largest + BASE
    if "converting" in rungs:
        expected = max(expected, QUANTIZING * size.piece + CONVERTER)
    expected += held + BESIDE
    if expected > there:
        raise RungError(
            f"the largest stage alone has {size.largest / 1e6:.0f}M parameters and takes {_gb(expected)}, "
            f"{_gb(there)} are available; free memory, or use a machine with more"
        )
    reason = "as asked for" if asked else f"for whole it would take {_gb(whole)}"
    return Streaming(reason=reason, expected=expected, available=there)


def _whole(size: Size, rungs: Sequence[str], held: int) -> int:
    """Bytes at the peak of the most demanding rung."""
    beside = CONVERTER if "converting" in rungs else BASE
    return max(WHOLE.get(rung, max(WHOLE.values())) for rung in rungs) * size.parameters + held + beside + BESIDE


def _weigh(family: str, folder: Path, progress: isolated.Progress) -> Size:
    """A job: what the headers of the files tell, once they fit the configuration."""
    from models import registry
    from models.authoring.by_stage import ModelByStage

    progress(0, 1)
    model = ModelByStage(registry.family(family), folder)
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    stages = {stage: model.parameters_of(stage) for stage in model.stages}
    pieces = (min(count, MOST) if stage in CUT else count for stage, count in stages.items())
    return Size(parameters, max(stages.values()), max(pieces))


def available() -> int:
    """Bytes that a new process may take without swapping: of the machine, and of the group this one is limited with."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        there = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):  # another system: what there is in all is all it says
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([there, *_left_in_groups()])


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the limits of this process's control group, and of those that it is in, leave."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        group = top / path.lstrip("/")
        for place in [group, *group.parents]:
            limits = [(_number(place / limit), _number(place / used)) for limit, used in _FILES]
            cached = _cached(place / "memory.stat")
            left += [max(0, limit - used + cached) for limit, used in limits if limit and place.is_relative_to(top)]
    return left


#: The limit of a group and what it uses, as both versions of the system name them.
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def _number(path: Path) -> int:
    """What the file says; nothing where there is none, or no limit."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _cached(path: Path) -> int:
    """Bytes of files that are kept in memory and can be dropped at once: a checkpoint that was read counts as used."""
    try:
        lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
        return next((int(words[1]) for words in lines if words[:1] == ["inactive_file"]), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
