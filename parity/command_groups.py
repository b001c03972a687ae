"""The groups of the command line: recordings, planted faults, the cache. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.options import (
    FAILED,
    INCONCLUSIVE,
    PASSED,
    GoldenDir,
    Models,
    Prompts,
    RemoteCode,
    WeightsOption,
    complete_models,
    reporter,
    select,
)

golden = typer.Typer(help="Recordings that gate a conversion without the original.", no_args_is_help=True)
faults = typer.Typer(help="Real porting bugs, planted to see that they are caught.", no_args_is_help=True)
cache = typer.Typer(help="Converted files that are kept between runs.", no_args_is_help=True)


@golden.command("record")
def golden_record(
    names: Models,
    weights: WeightsOption = "tiny",
    prompts: Prompts = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace recordings that exist.")] = False,
    golden_dir: GoldenDir = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Run the original and record it."""
    from parity.golden import GoldenStore
    from parity.pipeline import Request, record_golden

    store = GoldenStore(golden_dir) if golden_dir else GoldenStore.default()
    for model in select(names):
        request = Request(model=model, weights=weights, prompts=prompts, remote_code=trust_remote_code)
        recording = record_golden(request, store, reporter(), overwrite=overwrite)
        typer.echo(f"{recording.path}  {recording.size / 1e3:,.0f} kB")


@golden.command("check")
def golden_check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]", autocompletion=complete_models)] = None,
    weights: WeightsOption = "tiny",
    prompts: Prompts = None,
    golden_dir: GoldenDir = None,
) -> None:
    """Check that recordings are there, fresh and used; without names, every preset's."""
    from parity.errors import GoldenError
    from parity.golden import GoldenStore
    from parity.pipeline import Request, verify_golden

    store = GoldenStore(golden_dir) if golden_dir else GoldenStore.default()
    problems = 0
    for model in select(names or ["all"]):
        request = Request(model=model, weights=weights, prompts=prompts)
        try:
            verify_golden(request, store, reporter())
            typer.echo(f"fresh  {request.name}/{weights}/{request.prompt_set}")
        except GoldenError as error:
            problems += 1
            typer.echo(f"ERROR  {error}", err=True)
    for recording in store.unused():
        problems += 1
        typer.echo(f"ERROR  {recording.name} is used by no check; remove it with `parity golden prune --yes`", err=True)
    raise typer.Exit(INCONCLUSIVE if problems else PASSED)


@golden.command("list")
def golden_list(golden_dir: GoldenDir = None) -> None:
    """List what is recorded."""
    from parity.golden import GoldenStore

    store = GoldenStore(golden_dir) if golden_dir else GoldenStore.default()
    total = 0
    for recording in store.all():
        total += recording.size
        typer.echo(f"{recording.name}  {recording.facts['positions']} positions  {recording.size / 1e3:,.0f} kB")
    typer.echo(f"{total / 1e6:,.1f} MB in {store.folder}")


@golden.command("prune")
def golden_prune(
    yes: Annotated[bool, typer.Option("--yes", help="Really remove; otherwise only say what would be.")] = False,
    golden_dir: GoldenDir = None,
) -> None:
    """Remove recordings that no check reads."""
    from parity.golden import GoldenStore

    store = GoldenStore(golden_dir) if golden_dir else GoldenStore.default()
    unused = store.unused()
    for recording in unused:
        typer.echo(f"{'removed' if yes else 'would remove'}  {recording.name}")
        if yes:
            recording.path.unlink(missing_ok=True)
            recording.sidecar.unlink(missing_ok=True)
    if not unused:
        typer.echo("every recording is used")


@faults.command("list")
def faults_list() -> None:
    """List the faults: what each is, which rung is to blame, how many models can have it."""
    from rich.console import Console

    from parity.faults.commands import render_list

    render_list(Console())


@faults.command("run")
def faults_run(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Plant in this model; repeatable; without, one of every architecture."),
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", help="Plant this fault, or this group of them; repeatable.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            help="Plant in models with these weights: tiny (default), sample, or what checks take; repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write findings here as they come; those it has are not repeated."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the matrix.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Runs at a time; as many as there are processors.")
    ] = None,
) -> None:
    """Plant every fault in every model that can have it, and see what `parity check` says."""
    from rich.console import Console

    from parity.faults.commands import carry_out, choose, with_weights
    from parity.faults.matrix import to_markdown
    from parity.files import writable, write_whole

    chosen, models = choose(fault or ()), select(model) if model else None
    writable(output, markdown)
    console = Console(stderr=True)
    planted = [each for kind in weights or ["tiny"] for each in with_weights(models, kind, console.print)]
    findings = carry_out(chosen, planted, output, console, workers)
    if markdown:
        write_whole(markdown, to_markdown(chosen, findings, planted))
    caught = sum(finding.caught for finding in findings)
    typer.echo(f"{caught} of {len(findings)} faults caught")
    raise typer.Exit(PASSED if findings and caught == len(findings) else FAILED)


@faults.command("page")
def faults_page(
    findings: Annotated[list[Path], typer.Argument(help="What `parity faults run -o` has written.")],
    markdown: Annotated[Path, typer.Option("--markdown", help="Where to write the matrix.")],
) -> None:
    """Write the matrix of what has been run so far, and say what has not been."""
    from rich.console import Console

    from parity.faults.commands import choose, read_findings, with_weights
    from parity.faults.matrix import to_markdown
    from parity.files import writable, write_whole

    writable(markdown)
    found = [finding for path in findings for finding in read_findings(path)]
    console = Console(stderr=True)
    others = dict.fromkeys((finding.model, finding.weights) for finding in found if finding.weights != "tiny")
    planted = with_weights(None, "tiny", console.print)
    for name, kind in others:
        planted += with_weights(select([name]), kind, console.print)
    write_whole(markdown, to_markdown(choose(()), found, planted))


@cache.command("list")
def cache_list() -> None:
    """List what is kept: what it is, its size, when it was made and last used."""
    from rich.console import Console

    from parity.artifacts.cache import ArtifactCache
    from parity.artifacts.command import render_list

    render_list(ArtifactCache.default(), Console())


@cache.command("clear")
def cache_clear(
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", min=0, metavar="DAYS", help="Only what was last used so many days ago."),
    ] = None,
) -> None:
    """Remove what is kept, or what was not used for long. Runs that use it go on."""
    from parity.artifacts.cache import ArtifactCache
    from parity.artifacts.command import clear

    typer.echo(clear(ArtifactCache.default(), older_than))
