"""The command line. Parses and validates before anything heavy is imported."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from mmdd.errors import NonFiniteError, UserError, unknown_name

if TYPE_CHECKING:
    from mmdd.api import Distilled

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn a large training set into a tiny synthetic one on which a model trains to nearly"
    " the same accuracy.",
    epilog="Start with: [bold]mmdd distill digits[/bold]",
)
INTERRUPTED = 130
LOAD = Path("/proc/loadavg")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Recipe values, e.g. optimise.inputs.lr=2 learner.width=32.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command()
def distill(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA|RECIPE",
            help="'digits', a folder or file, a Hub name (owner/name), a set of PyG"
            " (pyg:Planetoid/Cora), or a recipe (YAML file, or a name of `mmdd list recipes`).",
        ),
    ],
    overrides: Overrides = None,
    per_class: Annotated[int | None, typer.Option(help="Synthetic items per class.")] = None,
    items: Annotated[int | None, typer.Option(help="Synthetic items in all.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of the training set.")] = None,
    method: Annotated[str | None, typer.Option(help="See `mmdd list methods`.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of distillation.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Fit the distillation into this time.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder where PyG's sets lie (pyg:NAME/ITEM).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make (default: runs/…).")] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Score the result beside its baselines at the end.")
    ] = True,
    json_: Json = False,
) -> None:
    """Distil a data set: [bold]mmdd distill digits[/bold]."""
    from mmdd.compose import from_flags, parse_overrides

    recipe = from_flags(
        data,
        method=method,
        per_class=per_class,
        items=items,
        fraction=fraction,
        steps=steps,
        minutes=minutes,
        seed=seed,
        device=device,
        options=_with_root(root, parse_overrides(overrides or [])),
    )
    folder = out or _free_folder(recipe)
    from mmdd.api import run_recipe
    from mmdd.progress import for_terminal

    progress = for_terminal(quiet=json_)
    done = _interruptible(lambda: run_recipe(recipe, out=folder, progress=progress), folder)
    _judge_and_tell(done, progress, evaluate, json_)


@app.command()
def experts(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA|RECIPE", help="As for `mmdd distill`."),
    ],
    overrides: Overrides = None,
    count: Annotated[int | None, typer.Option(help="Experts; more extend a folder.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each.")] = None,
    method: Annotated[str, typer.Option(help="Whose experts: mtt, tesla, datm, dance, …")] = "mtt",
    root: Annotated[
        Path | None, typer.Option(help="Folder where PyG's sets lie (pyg:NAME/ITEM).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder (default: the cache, where distill finds them).")
    ] = None,
    json_: Json = False,
) -> None:
    """Record expert trajectories for methods that follow them; the same command continues."""
    from mmdd.compose import from_flags, parse_overrides

    own = {"experts.count": count, "experts.epochs": epochs, "experts.folder": out and str(out)}
    given = {key: value for key, value in own.items() if value is not None}
    options = {**given, **_with_root(root, parse_overrides(overrides or []))}
    recipe = from_flags(data, method=method, device=device, options=options)
    from mmdd.api import record_experts
    from mmdd.progress import for_terminal
    from mmdd.run import Interrupted

    try:
        found = record_experts(recipe, progress=for_terminal(quiet=json_))
    except (Interrupted, KeyboardInterrupt):
        typer.echo("\nStopped. The same command continues.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if json_:
        about = {"count": found.count, "epochs": found.epochs, "bytes": found.nbytes}
        _print_json({"folder": str(found.folder), **about})
        return
    typer.echo(
        f"{found.count} experts of {found.epochs} epochs, {found.nbytes / 2**20:.1f} MiB, lie in"
        f" {found.folder}"
    )
    same = [f"{key}={value}" for key, value in given.items()] + (overrides or [])
    typer.echo(f"Next:\n  {' '.join(['mmdd distill', data, '--method', method, *same])}")


@app.command()
def resume(folder: Folder, json_: Json = False) -> None:
    """Continue a run that was stopped; the end is the same as without the stop."""
    _require_folder(folder)
    from mmdd import api
    from mmdd.progress import for_terminal

    progress = for_terminal(quiet=json_)
    done = _interruptible(lambda: api.resume(folder, progress=progress), folder)
    _judge_and_tell(done, progress, not done.results, json_)


@app.command()
def evaluate(
    folder: Folder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="How to judge, e.g. evaluate.protocol=idc evaluate.epochs=300 (not kept).",
            show_default=False,
        ),
    ] = None,
    encoders: Annotated[
        str | None, typer.Option(help="Names joined by commas, e.g. convnet,resnet18.")
    ] = None,
    learners: Annotated[int | None, typer.Option(min=1, help="Fresh learners per row.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Score random, herding and full data beside it.")
    ] = True,
    split: Annotated[
        str, typer.Option(help="test, or validation while options are chosen (not kept).")
    ] = "test",
    json_: Json = False,
) -> None:
    """Train fresh learners on a distilled set and score them on the real test split."""
    _require_folder(folder)
    names = [name.strip() for name in encoders.split(",")] if encoders else []
    from mmdd import api, catalog
    from mmdd.compose import parse_overrides
    from mmdd.progress import for_terminal
    from mmdd.protocols import Split

    options = parse_overrides(overrides or [])
    scored = catalog.require("split", split, get_args(Split))
    done = api.load(folder)
    known = catalog.options(done.recipe.modality).ENCODERS
    for name in names:
        catalog.require("encoder", name, known)
    progress = for_terminal(quiet=json_)
    report = _interruptible(
        lambda: done.evaluate(
            encoders=names,
            learners=learners,
            baselines=baselines,
            split=scored,
            options=options,
            progress=progress,
        ),
        folder,
    )
    if scored == "test" and not options:
        _record(done)
    if not options:
        asked = names or [done.parts.judge, *done.recipe.evaluate.encoders]
        report = {**report, "results": {name: report["results"][name] for name in asked}}
    _print_json(report) if json_ else _print_table(report)


@app.command()
def show(folder: Folder, json_: Json = False) -> None:
    """Tell what a finished set is: data, method, budget, scores, files."""
    _require_folder(folder)
    from mmdd import artifact

    manifest = artifact.load(folder).manifest
    if json_:
        _print_json({k: v for k, v in manifest.items() if k != "files"})
        return
    from mmdd.tables import show_manifest

    show_manifest(manifest, folder)


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder or file to make.")],
    to: Annotated[
        str, typer.Option(help="parquet, safetensors, imagefolder, wav, …: `mmdd list exports`.")
    ] = "parquet",
) -> None:
    """Write a finished set in a form that other programs read."""
    _require_folder(folder)
    from mmdd import artifact

    written = artifact.export(folder, to, out)
    typer.echo(f"{to} {'written to' if written else 'lies already in'} {out}")


@app.command("list")
def list_(
    family: Annotated[
        str | None, typer.Argument(help="methods, recipes, encoders, objectives, …")
    ] = None,
    json_: Json = False,
) -> None:
    """List what there is to choose from."""
    from mmdd.tables import families, show_families

    known = families()
    if family is not None and family not in known:
        raise unknown_name("family", family, known)
    chosen = known if family is None else {family: known[family]}
    _print_json(chosen if family is None else chosen[family]) if json_ else show_families(chosen)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from mmdd import __version__

        typer.echo(f"mmdd {__version__}")
        raise typer.Exit


def _with_root(root: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    return options if root is None else {"data.root": str(root), **options}


def _free_folder(recipe: Any) -> Path:
    """``runs/<data>-<method>-<budget>``, numbered when taken."""
    data = Path(str(recipe.data.source)).stem or "data"
    wanted = recipe.synthetic
    size = wanted.per_class or wanted.items or wanted.fraction
    unit = "per-class" if wanted.per_class else "items" if wanted.items else "fraction"
    base = Path("runs") / f"{data}-{recipe.method}-{size:g}-{unit}"
    tries = [base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 10_000))]
    return next(path for path in tries if not path.exists())


def _require_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    from mmdd.errors import nearest

    beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
    close = nearest(folder.name, beside)
    hint = f"Did you mean {str(folder.parent / close)!r}?" if close else None
    raise UserError("no such folder", got=str(folder), hint=hint)


def _interruptible(work: Callable[[], Any], folder: Path) -> Any:
    from mmdd.run import RECIPE, Interrupted

    try:
        return work()
    except (Interrupted, KeyboardInterrupt):
        begun = (folder / RECIPE).exists()
        how = f"Continue with: mmdd resume {folder}" if begun else "Nothing was written yet."
        typer.echo(f"\nStopped. {how}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _judge_and_tell(done: Distilled, progress: Any, evaluate: bool, json_: bool) -> None:
    folder = done.folder or Path()
    if evaluate:
        _interruptible(lambda: done.evaluate(progress=progress), folder)
        _record(done)
    if json_:
        _print_json(done.results or {"budget": done.budget, "seconds": done.run["seconds"]})
        return
    _print_table(done.results)
    typer.echo(f"\nThe set lies in {folder} (look at {folder / 'picture.png'}).")
    typer.echo("Next:")
    typer.echo(f"  mmdd show {folder}")
    from mmdd.catalog import options

    hints = options(done.recipe.modality).HINTS
    typer.echo(f"  mmdd evaluate {folder} --encoders {hints['encoders']}")
    typer.echo(f"  mmdd export {folder} --to {hints['export']}")
    typer.echo(f"  python -c \"import datasets; print(datasets.load_dataset('{folder}'))\"")


def _record(done: Distilled) -> None:
    from mmdd import artifact

    if done.folder is not None:
        artifact.update_results(done.folder, done.results)


def _print_table(report: dict[str, Any]) -> None:
    from mmdd.tables import show_results

    if report:
        show_results(report)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=False, default=str))


def _idle(looks: int = 5) -> bool:
    """True if nothing but this process runs, as far as the system tells (Linux)."""
    running = 0
    for _ in range(looks):
        try:
            # "0.20 0.18 0.12 1/80 11206": tasks that run now, this one among them, of all
            running += int(LOAD.read_text().split()[3].partition("/")[0]) - 1
        except (OSError, IndexError, ValueError):
            return False
        time.sleep(0.004)
    return running <= 1


def main() -> None:
    """Run the command line; a person's mistake is one line and exit code 2."""
    # Before torch starts its threads: on a machine that is also doing other work, threads that
    # wait by spinning made a step several times slower; on a quiet one they are a third faster.
    if not _idle():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # its retries are told in one line by the error that follows
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except UserError as error:
        print(f"mmdd: {error}", file=sys.stderr)
        sys.exit(2)
    except NonFiniteError as error:
        print(f"mmdd: stopped: {error}", file=sys.stderr)
        sys.exit(3)
    except OSError as error:
        print(f"mmdd: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        sys.exit(4)


if __name__ == "__main__":
    main()
