"""What commands of the command line share: an option has one name, one meaning and one help text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.registry import Model
    from parity.progress import Reporter

#: Exit codes, a contract.
PASSED, FAILED, MISUSED, INCONCLUSIVE = 0, 1, 2, 3
EXIT_CODES = {"PASS": PASSED, "FAIL": FAILED, "ERROR": INCONCLUSIVE}


def select(names: Sequence[str]) -> list[Model]:
    """The presets that are asked for by name, by another name or as all, each once."""
    from models import registry

    if "all" in names:
        return list(registry.models())
    return list({model.name: model for model in map(registry.get, names)}.values())


def reporter() -> Reporter:
    """Says on standard error what is being done."""
    from rich.console import Console

    from parity.progress import Reporter

    return Reporter(Console(stderr=True))


def complete_models(incomplete: str) -> list[str]:
    """Presets, their other names, families."""
    from models import registry

    names = [name for model in registry.models() for name in (model.name, *model.preset.aliases)]
    return [name for name in [*names, *registry.FAMILIES, "all"] if name.startswith(incomplete)]


def complete_recipes(incomplete: str) -> list[str]:
    """Recipes."""
    from parity.convert.recipes import RECIPES

    return [name for name in RECIPES if name.startswith(incomplete)]


def complete_weights(incomplete: str) -> list[str]:
    """Kinds of weights; files and folders are the shell's."""
    from parity.weights import KINDS, LOCAL

    return [name for name in KINDS if name not in LOCAL and name.startswith(incomplete)]


Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="Presets, families, or all.", autocompletion=complete_models),
]
OneModel = Annotated[str, typer.Argument(metavar="MODEL", help="A preset or a family.", autocompletion=complete_models)]
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        help="tiny, synthetic, sample, hub, hub@REVISION, kaggle, a .gguf file, or a folder.",
        autocompletion=complete_weights,
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="Quantization recipe; repeatable; all for all six.", autocompletion=complete_recipes),
]
EncoderRecipe = Annotated[
    str | None,
    typer.Option(
        "--encoder-recipe",
        help="Quantize what only the encoder reads by this recipe instead.",
        autocompletion=complete_recipes,
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help="What a recipe may cost: lossless, good, compact, or METRIC=VALUE, which is repeatable; else the "
        "project's own, else the tier of its precision.",
    ),
]
Rungs = Annotated[list[str] | None, typer.Option("--rung", help="Only this rung; repeatable.")]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts", help="Prompt set: short, long, ..., a situation (docs/inputs.md), all of them, or a .jsonl file."
    ),
]
Prefill = Annotated[
    list[int] | None, typer.Option("--prefill", min=1, help="Length of a prefill signature; repeatable.")
]
KVCache = Annotated[int | None, typer.Option("--kv-cache", min=1, help="Cache length in positions.")]
RemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let an original that transformers lacks run the code in its repository, on your machine.",
    ),
]
Streamed = Annotated[
    bool | None,
    typer.Option(
        "--streamed/--no-streamed",
        help="Run models one stage at a time; by default where they would not fit into memory.",
        show_default=False,
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Neither take files from earlier runs nor keep any for later ones.")
]
GoldenDir = Annotated[Path | None, typer.Option("--golden-dir", help="Where recordings are kept.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Write the report as Markdown.")]
PerPrompt = Annotated[bool, typer.Option("--per-prompt", help="A table for every prompt in the Markdown as well.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page.")]
