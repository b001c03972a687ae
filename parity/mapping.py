"""``parity weights``: which stored tensors become which parameters, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from models import registry
from models.authoring.checkpoint import Checkpoint
from models.authoring.hf_config import HFConfig
from models.registry import Model
from parity import isolated
from parity.progress import Reporter
from parity.weights import resolve


@dataclass(frozen=True)
class Row:
    """One operation, with equal rows of all layers folded into one: ``layers`` counts them."""

    sources: str
    operation: str
    targets: str
    shape: str
    layers: int


def render(model: Model, weights: str, console: Console, reporter: Reporter) -> None:
    """Print the map for a checkpoint, after loading it strictly: what is printed is what happens.

    Raises:
        ModelError: the checkpoint does not fit the map.
    """
    with reporter.step(f"{model.name}: weights") as progress:
        folder = resolve(model, weights, progress, reporter.note).folder
    with reporter.step("loading through the weight map"):
        rows, parameters = isolated.run("loading", partial(_rows, model.family.name, folder)).value
    table = Table(caption=f"{parameters:,} parameters", caption_justify="left")
    for heading in ("stored", "operation", "parameter", "shape", "layers"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "layers" else "left")
    for row in rows:
        table.add_row(row.sources, row.operation, row.targets, row.shape, str(row.layers) if row.layers else "")
    console.print(table, markup=False)


def _rows(family: str, folder: Path, progress: isolated.Progress) -> tuple[list[Row], int]:
    progress(0, 1)
    found = registry.family(family)
    config = found.config_from(HFConfig.load(folder))
    model = found.load(folder)
    parameters = dict(model.named_parameters())
    with Checkpoint(folder) as checkpoint:
        operations = list(found.weight_map_of(config, checkpoint))

    def described() -> Iterator[tuple[str, str, str, str]]:
        for operation in operations:
            shapes = " ".join(str(list(parameters[name].shape)) for name in operation.targets)
            sources, targets = "\n".join(operation.sources), "\n".join(operation.targets)
            yield sources, operation.description, targets, shapes

    folded: dict[tuple[str, str, str, str], int] = {}
    for sources, operation, targets, shapes in described():
        in_layer = ".layers." in sources or ".blocks." in f".{targets}"
        key = (_fold(sources), operation, _fold(targets), shapes)
        folded[key] = folded.get(key, 0) + in_layer
    rows = [Row(*key, layers=count) for key, count in folded.items()]
    return rows, sum(parameter.numel() for parameter in parameters.values())


def _fold(name: str) -> str:
    """The name with its layer number as ``{}``."""
    return "\n".join(
        ".".join("{}" if part.isdigit() else part for part in line.split(".")) for line in name.split("\n")
    )
