"""A folder with one call of one stage, and what it takes to run that stage again and nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from parity import isolated
from parity.bisect.bisector import Found
from parity.bisect.watching import tensor_errors
from parity.compare.bisect import Measured
from parity.compare.limits import EXACT
from parity.convert.float_file import Export, FloatFile, for_export, write_file
from parity.convert.quantize import quantize
from parity.convert.recipes import get_recipe, with_encoder
from parity.errors import RungError, UsageError
from parity.files import scratch_folder, whole_folder
from parity.progress import Reporter
from parity.runners.driver import Tensor
from parity.runners.precision import Precision
from parity.runners.reauthored import Reauthored
from parity.runners.stages import refusals, signature_name, torch_stages
from parity.trace import SIGNATURES
from parity.weights import LOCAL, Weights, kind_of, resolve

Tensors = Mapping[str, Tensor]

FACTS = "reproduction.json"
TENSORS = ("inputs", "expected", "got")
#: Rungs that run in PyTorch.
_OURS = (EXACT, "reauthored")


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Which stage of what, and how far off it was. ``recipe`` is ``None`` for a float rung."""

    model: str
    weights: str
    sha256: str
    rung: str
    recipe: str | None
    encoder_recipe: str | None
    stage: str
    phase: str
    entry: str
    length: int
    cache_length: int
    error: float
    limit: float


@dataclass(frozen=True)
class Replayed:
    """A stage that was run again: its error ``then``, as the folder has it, and ``now``."""

    reproduction: Reproduction
    then: float
    now: float

    @property
    def bad(self) -> bool:
        """Whether it is still off."""
        return not self.now <= self.reproduction.limit


def refuse_existing(folder: Path) -> None:
    """Refuse a place that is taken, before the work that would end there.

    Raises:
        UsageError: something is there.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists; name a folder that does not, or remove it")


def save(
    found: Found,
    folder: Path,
    *,
    model: str,
    weights: str,
    sha256: str,
    recipe: str | None = None,
    encoder_recipe: str | None = None,
) -> None:
    """Write the reproduction of a bad stage, whole or not at all. Recipes are as ``get_recipe`` takes them.

    Raises:
        UsageError, ParityError: the folder cannot be written.
    """
    from safetensors.numpy import save_file

    sample, bisection = found.sample, found.bisection
    if sample is None:
        raise ValueError("there is no bad stage to save")
    row = next(row for row in bisection.stages if row.bad and (row.stage, row.phase) == (sample.stage, bisection.phase))
    reproduction = Reproduction(
        model=model,
        # A folder must be found from wherever the replay is started.
        weights=str(Path(weights).expanduser().resolve()) if kind_of(weights) in LOCAL else weights,
        sha256=sha256,
        rung=bisection.rung,
        recipe=recipe,
        encoder_recipe=encoder_recipe,
        stage=sample.stage,
        phase=row.phase,
        entry=sample.call.entry,
        length=sample.call.length,
        cache_length=sample.call.cache_length,
        error=_error(sample.expected, sample.got),
        limit=row.limit,
    )
    with whole_folder(folder) as temporary:
        for name, tensors in zip(TENSORS, (sample.inputs, sample.expected, sample.got), strict=True):
            arrays = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
            save_file(arrays, temporary / f"{name}.safetensors")
        (temporary / FACTS).write_text(json.dumps(asdict(reproduction), indent=1) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_readme(reproduction, folder), encoding="utf-8")


def _readme(it: Reproduction, folder: Path) -> str:
    what = "the whole call" if it.stage == SIGNATURES else f"stage `{it.stage}`"
    return f"""# {it.model}, {it.rung}: {it.stage}

One call of {what} (`{it.entry}`, {it.length or "no"} tokens, a cache of {it.cache_length}) in {it.phase}, the one that
was furthest off: relative L2 {it.error:.3g}, where {it.limit:.3g} would do.

| file | holds |
|---|---|
| `inputs.safetensors` | what it was given, by the names of its tensors |
| `expected.safetensors` | what the reference made of that |
| `got.safetensors` | what the rung made of it |

Run it again, on the sources as they are now; the exit code is 0 once it is right:

```sh
parity bisect --replay {shlex.quote(str(folder.resolve()))}
```
"""


def replay(folder: Path, reporter: Reporter) -> Replayed:
    """Run the stage of a reproduction again, with today's sources.

    Raises:
        UsageError: the folder is no reproduction, or its weights are no longer those it was made with.
        ParityError, ModelError: the stage cannot be run.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        it = Reproduction(**json.loads((folder / FACTS).read_text(encoding="utf-8")))
        inputs, expected, got = (load_file(folder / f"{name}.safetensors") for name in TENSORS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UsageError(
            f"{folder} is no reproduction ({error}); `parity bisect MODEL -o {folder}` makes one"
        ) from None
    from models import registry

    model = registry.get(it.model)
    isolated.prepare(converter=it.rung not in _OURS)
    with reporter.step(f"{it.model}: weights") as progress:
        weights = resolve(model, it.weights, progress, reporter.note)
    if weights.sha256 != it.sha256:
        raise UsageError(f"the weights of {it.model} have changed since {folder} was made; bisect again")
    again = _run_reauthored if it.rung in _OURS else _run_converted
    with reporter.step(f"{it.rung}: {it.stage}") as progress:
        made = again(it, model.family.name, weights, inputs, progress)
    return Replayed(it, _error(expected, got), _error(expected, made))


def _run_reauthored(
    it: Reproduction, family: str, weights: Weights, inputs: Tensors, progress: isolated.Progress | None
) -> Tensors:
    return isolated.run(it.stage, partial(_reauthored, it, family, weights.folder, inputs), progress).value


def _run_converted(
    it: Reproduction, family: str, weights: Weights, inputs: Tensors, progress: isolated.Progress | None
) -> Tensors:
    """Convert the stage alone, by the recipe if there is one, and run it."""
    with scratch_folder() as scratch:
        path = scratch / "stage.tflite"
        file = isolated.run("converting", partial(_convert, it, family, weights.folder, inputs, path), progress).value
        if it.recipe:
            path = path.with_name("quantized.tflite")
            quantize(file.path, file.names, with_encoder(get_recipe(it.recipe), it.encoder_recipe), path, progress)
        return isolated.run(it.rung, partial(_call, it.rung, path, file.signatures[0], inputs), progress).value


def _error(expected: Tensors, got: Tensors) -> float:
    """Relative L2 of the output that is furthest off.

    Raises:
        RungError: an output is missing, or of another shape.
    """
    if not expected:
        raise RungError("nothing is expected of the stage; bisect again")
    for name, value in expected.items():
        if name not in got or got[name].shape != value.shape:
            found = list(got[name].shape) if name in got else "nothing"
            raise RungError(f"the stage makes {found} of {name}, expected is {list(value.shape)}; bisect again")
    return Measured.of({name: tensor_errors(name, value, got[name]) for name, value in expected.items()}).rel_l2


def _reauthored(
    it: Reproduction, family: str, folder: Path, inputs: Tensors, progress: isolated.Progress
) -> dict[str, Tensor]:
    progress(0, 1)
    precision: Precision = "float64" if it.rung == EXACT else "float32"
    with torch_stages(Reauthored(family, folder, (it.cache_length,), precision=precision)) as (_, (model,)):
        steps = {step.name: step for step in model.steps(it.entry, it.length)}
        if it.stage not in steps:
            raise RungError(f"{it.entry} has no stage {it.stage} any more; bisect again")
        return {name: np.array(value) for name, value in steps[it.stage].run(inputs).items()}


def _convert(
    it: Reproduction, family: str, folder: Path, inputs: Tensors, destination: Path, progress: isolated.Progress
) -> FloatFile:
    import torch

    from models.authoring.model import Entry
    from models.authoring.signatures import Signature

    with for_export(family, folder) as (model, values):
        entry = model.entry(it.entry, it.cache_length)
        if it.stage != SIGNATURES:
            stages = {stage.name: stage for stage in entry.stages}
            if it.stage not in stages:
                raise RungError(f"{it.entry} has no stage {it.stage} any more; bisect again")
            entry = Entry([stages[it.stage]], stages[it.stage].outputs)
        samples = {key: torch.from_numpy(value) for key, value in inputs.items()}
        export = Export(prefill_lengths=(max(it.length, 1),), cache_length=it.cache_length)
        signature = Signature(f"{signature_name(it.entry, it.length)}.{it.stage}", entry, samples)
        return write_file(model, values, [signature], export, destination, progress)


def _call(rung: str, path: Path, signature: str, inputs: Tensors, progress: isolated.Progress) -> dict[str, Tensor]:
    from ai_edge_litert.interpreter import Interpreter

    progress(0, 1)
    with refusals(rung):
        runner = Interpreter(str(path), num_threads=1).get_signature_runner(signature)
        taken = runner.get_input_details()
        return {
            name: np.array(value)
            for name, value in runner(**{key: value for key, value in inputs.items() if key in taken}).items()
        }
