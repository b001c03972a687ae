"""The command line: a thin shell over the pipeline. Heavy imports happen inside the commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from parity.command_groups import cache, faults, golden
from parity.options import (
    EXIT_CODES,
    FAILED,
    INCONCLUSIVE,
    MISUSED,
    PASSED,
    Budgets,
    EncoderRecipe,
    GoldenDir,
    HtmlFile,
    JsonFile,
    KVCache,
    MarkdownFile,
    Models,
    NoCache,
    OneModel,
    PerPrompt,
    Prefill,
    Prompts,
    Recipes,
    RemoteCode,
    Rungs,
    Streamed,
    WeightsOption,
    complete_models,
    complete_recipes,
    reporter,
    select,
)

if TYPE_CHECKING:
    from parity.artifacts.cache import ArtifactCache
    from parity.report.record import Report

app = typer.Typer(
    name="parity",
    help="Numerical parity for on-device language models: every rung from the original to the quantized file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(golden, name="golden")
app.add_typer(faults, name="faults")
app.add_typer(cache, name="cache")

#: What the library makes of Ctrl-C; the contract has no such code.
INTERRUPTED = 130


@app.command()
def models() -> None:
    """List the presets: family, size, original, samples, what is recorded."""
    from rich.console import Console
    from rich.table import Table

    from models import registry
    from parity.convert.recipes import RECIPES
    from parity.golden import GoldenStore

    recorded: dict[str, list[str]] = {}
    for recording in GoldenStore.default().all():
        name, _, rest = recording.name.partition("/")
        recorded.setdefault(name, []).append(rest)
    caption = f"* has trained weights in a package: --weights sample\nrecipes for every model: {', '.join(RECIPES)}"
    table = Table(caption=caption, caption_justify="left")
    for heading in ("preset", "family", "parameters", "original", "recorded"):
        justify: Literal["left", "right"] = "right" if heading == "parameters" else "left"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading == "preset")
    for model in registry.models():
        names = "\n".join((model.name + (" *" if model.preset.sample else ""), *model.preset.aliases))
        size = f"{model.preset.parameters:,}"
        table.add_row(names, model.family.name, size, model.preset.repo, ", ".join(recorded.get(model.name, ["-"])))
    Console().print(table)


@app.command()
def check(
    names: Models,
    weights: WeightsOption = "tiny",
    recipe: Recipes = None,
    encoder_recipe: EncoderRecipe = None,
    budget: Budgets = None,
    rung: Rungs = None,
    prompts: Prompts = None,
    prefill: Prefill = None,
    kv_cache: KVCache = None,
    golden: Annotated[bool, typer.Option("--golden", help="Gate on the recording, without the original.")] = False,
    golden_dir: GoldenDir = None,
    trust_remote_code: RemoteCode = False,
    streamed: Streamed = None,
    no_cache: NoCache = False,
    json: JsonFile = None,
    markdown: MarkdownFile = None,
    per_prompt: PerPrompt = False,
    html: HtmlFile = None,
) -> None:
    """Run the ladder on the same prompts and judge every rung."""
    from rich.console import Console

    from parity.budget import budget_of
    from parity.golden import GoldenStore
    from parity.pipeline import Request
    from parity.pipeline import check as run
    from parity.report import terminal
    from parity.report.record import overall

    store = GoldenStore(golden_dir) if golden_dir else GoldenStore.default()
    allowed = budget_of(budget or ())
    cache = _cache(no_cache)
    requests = [
        Request(
            model=model,
            weights=weights,
            prompts=prompts,
            rungs=rung or (),
            recipes=_expand(recipe),
            encoder_recipe=encoder_recipe,
            prefill_lengths=prefill or (),
            cache_length=kv_cache,
            golden=store if golden else None,
            cache=cache,
            budget=allowed,
            command=shlex.join(["parity", *sys.argv[1:]]),
            texts=bool(json or html),
            remote_code=trust_remote_code,
            streamed=streamed,
        )
        for model in select(names)
    ]
    writers = _writers(json, markdown, html, per_prompt=per_prompt)
    console = Console()
    reports: list[Report] = []
    try:
        for request in requests:
            reports.append(run(request, reporter()))
            terminal.render(reports[-1], console)
    finally:
        if len(reports) == len(requests):  # a file of fewer models than were asked for could say PASS
            for write in writers:
                write(reports)
    if len(reports) > 1:
        terminal.render_summary(reports, console)
    raise typer.Exit(EXIT_CODES[overall(reports)])


@app.command()
def bisect(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A preset or a family.", autocompletion=complete_models),
    ] = None,
    weights: WeightsOption = "tiny",
    rung: Annotated[
        list[str] | None, typer.Option("--rung", help="Only this rung or recipe; repeatable. reauthored, then float.")
    ] = None,
    recipe: Recipes = None,
    encoder_recipe: EncoderRecipe = None,
    prompts: Prompts = None,
    prefill: Prefill = None,
    kv_cache: KVCache = None,
    trust_remote_code: RemoteCode = False,
    no_cache: NoCache = False,
    json: JsonFile = None,
    html: HtmlFile = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A new folder for a reproduction of the first bad stage.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Run the stage of a reproduction again, and nothing else.")
    ] = None,
) -> None:
    """The first stage whose error jumps, and how the error grows by depth."""
    from rich.console import Console

    from parity.bisect import reproduction
    from parity.errors import UsageError
    from parity.files import writable, write_json, write_whole
    from parity.pipeline import Request
    from parity.pipeline import bisect as run
    from parity.report import stages

    console = Console()
    if replay is not None:
        if name is not None:
            raise UsageError("--replay knows its model from the folder; leave MODEL out")
        replayed = reproduction.replay(replay, reporter())
        stages.render_replayed(replayed, console)
        raise typer.Exit(FAILED if replayed.bad else PASSED)
    if name is None:
        raise UsageError("parity bisect takes a MODEL, or --replay FOLDER")
    recipes = _expand(recipe)
    request = Request(
        model=select([name])[0],
        weights=weights,
        prompts=prompts,
        rungs=rung or (() if recipes else ("reauthored", "float")),
        recipes=recipes,
        encoder_recipe=encoder_recipe,
        prefill_lengths=prefill or (),
        cache_length=kv_cache,
        cache=_cache(no_cache),
        remote_code=trust_remote_code,
    )
    writable(json, html)
    found = run(request, reporter(), output)
    for bisection in found:
        stages.render(bisection, console)
    about = {"model": request.name, "weights": weights, "prompts": request.prompt_set}
    bad = any(bisection.first for bisection in found)
    if json:
        write_json(json, stages.to_json(found, about))
    if html:
        write_whole(html, stages.to_html(found, about))
    if bad and output:
        console.print(f"{output}: run `parity bisect --replay {output}` to see it again", markup=False, soft_wrap=True)
    raise typer.Exit(FAILED if bad else PASSED)


@app.command()
def convert(
    name: OneModel,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write, or a folder to name it in.")],
    weights: WeightsOption = "tiny",
    recipe: Annotated[str | None, typer.Option("--recipe", autocompletion=complete_recipes)] = None,
    encoder_recipe: EncoderRecipe = None,
    prefill: Prefill = None,
    kv_cache: Annotated[
        int | None,
        typer.Option("--kv-cache", min=1, help="Cache length in positions; 1280, or all that the model knows."),
    ] = None,
    audio_seconds: Annotated[
        float | None, typer.Option("--audio-seconds", help="The longest audio of a model that hears; 10.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", help="Patches down and across, such as 32x32, of a picture in a prompt; repeatable."),
    ] = None,
    verification: Annotated[
        bool, typer.Option("--verification", help="Keep logits on prefill, as a check needs.")
    ] = False,
    no_cache: NoCache = False,
    plain: Annotated[bool, typer.Option("--plain", help="The converter's own way: slower, without composing.")] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Say what the time was spent on.")] = False,
) -> None:
    """Convert a checkpoint to a .tflite file, whole or not at all."""
    from rich.console import Console

    from parity.convert import export

    file = export.to_file(
        select([name])[0],
        weights,
        output,
        recipe=recipe,
        encoder_recipe=encoder_recipe,
        prefill_lengths=tuple(prefill or ()),
        cache_length=kv_cache,
        prefill_logits=verification,
        grids=grid or (),
        reporter=reporter(),
        cache=_cache(no_cache),
        audio_seconds=audio_seconds,
        plain=plain,
    )
    console = Console()
    console.print(f"{file.path}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"  {file.size / 1e6:,.1f} MB, {file.seconds:.1f} s", markup=False, highlight=False)
    for signature, shapes in file.signatures.items():
        console.print(f"  {signature}: {shapes}", markup=False, highlight=False, soft_wrap=True)
    for line in file.notes:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if timings:
        for spent, seconds in file.spent.items():
            console.print(f"  {seconds:6.2f} s  {spent}", markup=False, highlight=False)


@app.command()
def generate(
    name: OneModel,
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="The prompt, or what a transcript begins with.")] = "",
    audio: Annotated[str | None, typer.Option("--audio", help="A sound to transcribe by name, or a WAV file.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image", help="A picture by name, or a file; repeatable. Stands in front, or where TEXT has <image>."
        ),
    ] = None,
    weights: WeightsOption = "tiny",
    recipe: Recipes = None,
    rung: Rungs = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many tokens to generate.")] = 32,
    no_cache: NoCache = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Greedy generation from the same prompt on every rung, side by side."""
    from rich.console import Console

    from parity.inputs import Prompt
    from parity.media.images import MARKER
    from parity.pipeline import Request
    from parity.pipeline import generate as run
    from parity.report.side_by_side import render_generation

    request = Request(
        model=select([name])[0],
        weights=weights,
        recipes=_expand(recipe),
        rungs=rung or (),
        cache=_cache(no_cache),
        remote_code=trust_remote_code,
    )
    if image and MARKER not in text:
        text = MARKER * len(image) + text
    prompt = Prompt("prompt", text, "", audio=audio, images=tuple(image or ()))
    results = run(request, prompt, tokens, reporter())
    render_generation(results, Console())
    raise typer.Exit(INCONCLUSIVE if any(result.cause for result in results) else PASSED)


@app.command()
def bench(
    name: OneModel,
    weights: WeightsOption = "tiny",
    recipe: Recipes = None,
    encoder_recipe: EncoderRecipe = None,
    rung: Rungs = None,
    prompts: Prompts = None,
    prefill: Prefill = None,
    kv_cache: KVCache = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often everything is made and run.")] = 3,
    plain: Annotated[bool, typer.Option("--plain", help="Also the file that the converter makes by itself.")] = False,
    trust_remote_code: RemoteCode = False,
    json: JsonFile = None,
    markdown: MarkdownFile = None,
) -> None:
    """What a model costs here: seconds and memory to convert, prefill and decode rate of each rung."""
    from rich.console import Console

    from parity.bench import bench as run
    from parity.files import writable, write_json, write_whole
    from parity.pipeline import Request
    from parity.report import costs

    request = Request(
        model=select([name])[0],
        weights=weights,
        prompts=prompts,
        rungs=rung or (),
        recipes=_expand(recipe),
        encoder_recipe=encoder_recipe,
        prefill_lengths=prefill or (),
        cache_length=kv_cache,
        remote_code=trust_remote_code,
    )
    writable(json, markdown)
    measured = run(request, reporter(), rounds=rounds, plain=plain)
    costs.render(measured, Console())
    if json:
        write_json(json, measured.to_json())
    if markdown:
        write_whole(markdown, costs.to_markdown(measured))


@app.command()
def soak(
    draws: Annotated[int, typer.Option("--draws", min=1, help="How many random draws to run.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="What all draws follow from.")] = 0,
    draw: Annotated[int | None, typer.Option("--draw", min=0, help="Only the draw of this number.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A preset; repeatable; the smallest of every architecture.",
            autocompletion=complete_models,
        ),
    ] = None,
    files_every: Annotated[
        int,
        typer.Option("--files-every", min=0, help="How many draws of a model for one with files; 0: none."),
    ] = 20,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Draws at a time; one for each core.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Finished draws, JSON Lines; the same file is continued.")
    ] = None,
    failures: Annotated[Path, typer.Option("--failures", help="Where draws that do not pass are kept.")] = Path(
        "soak-failures"
    ),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the distribution as Markdown, with an SVG beside it.")
    ] = None,
) -> None:
    """Random weights and prompts that a correct port must pass: anything but a PASS is a false alarm."""
    from rich.console import Console

    from parity.soak.command import Soak, run

    asked = Soak(
        seed=seed,
        draws=draws,
        draw=draw,
        presets=tuple(found.name for found in select(model)) if model else (),
        files_every=files_every,
        workers=workers,
        output=output,
        failures=failures,
        markdown=markdown,
    )
    passed = run(asked, Console(), Console(stderr=True))
    raise typer.Exit(PASSED if passed else FAILED)


@app.command("weights")
def weight_map(name: OneModel, weights: WeightsOption = "tiny") -> None:
    """Print the weight map: which stored tensors become which parameters, and how."""
    from rich.console import Console

    from parity.mapping import render

    render(select([name])[0], weights, Console(), reporter())


@app.command("report")
def rerender(
    source: Annotated[Path, typer.Argument(metavar="RUN.json")],
    markdown: MarkdownFile = None,
    per_prompt: PerPrompt = False,
    html: HtmlFile = None,
) -> None:
    """Render a saved run again, and end with the exit code of its verdict."""
    from rich.console import Console

    from parity.report import terminal
    from parity.report.recheck import read_rechecked
    from parity.report.record import overall

    reports = read_rechecked(source)
    for write in _writers(None, markdown, html, per_prompt=per_prompt):
        write(reports)
    console = Console()
    for report in reports:
        terminal.render(report, console)
    if len(reports) > 1:
        terminal.render_summary(reports, console)
    raise typer.Exit(EXIT_CODES[overall(reports)])


def _expand(recipes: list[str] | None) -> Sequence[str]:
    from parity.convert.recipes import RECIPES

    return tuple(RECIPES) if recipes and "all" in recipes else recipes or ()


def _cache(no_cache: bool) -> ArtifactCache | None:
    """Made before any job is started."""
    from parity.artifacts.cache import ArtifactCache

    return None if no_cache else ArtifactCache.default()


def _writers(
    json: Path | None, markdown: Path | None, html: Path | None, *, per_prompt: bool
) -> list[Callable[[Sequence[Report]], None]]:
    """What writes each file that was asked for; an unwritable place is refused now, not after the run."""
    from parity.files import writable, write_whole
    from parity.report.html import to_html
    from parity.report.markdown import to_markdown
    from parity.report.record import write_json

    def text_writer(path: Path, form: Callable[[Sequence[Report]], str]) -> Callable[[Sequence[Report]], None]:
        return lambda reports: write_whole(path, form(reports))

    writable(json, markdown, html)
    writers: list[Callable[[Sequence[Report]], None]] = []
    if json:
        writers.append(lambda reports: write_json(reports, json))
    if markdown:
        writers.append(text_writer(markdown, partial(to_markdown, prompts=per_prompt)))
    if html:
        writers.append(text_writer(html, to_html))
    return writers


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the contract's code; whatever goes wrong is one line on standard error."""
    import signal

    # typer carries a click of its own and exports no base class of its errors
    from typer._click.exceptions import ClickException, NoArgsIsHelpError

    from models.errors import ModelError, UnknownModelError
    from parity.errors import ParityError, UsageError

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop cleans up like Ctrl-C
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(MISUSED)
    except ClickException as error:
        _fail(f"{error.format_message().rstrip('.')}; `parity --help` lists what there is", MISUSED)
    except (UsageError, UnknownModelError) as error:
        _fail(error, MISUSED)
    except (ParityError, ModelError, OSError) as error:
        _fail(error, INCONCLUSIVE)
    if code == INTERRUPTED:
        _fail("interrupted; nothing was concluded, start the command again", INCONCLUSIVE)
    sys.exit(code or PASSED)


def _fail(error: object, code: int) -> NoReturn:
    typer.echo(f"parity: {' '.join(str(error).split())}", err=True)
    sys.exit(code)
