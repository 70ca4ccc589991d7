"""The command line. Heavy imports stay inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pnapo_bench import __version__
from pnapo_bench.errors import TrainingStopped, UserError, unknown

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

app = typer.Typer(
    name="pnapo-bench",
    help="Which preference-alignment method makes the better rectified-flow model, for the same data and compute?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
pairs_app = typer.Typer(help="Noise-tracked preference pairs: build, inspect, verify.", no_args_is_help=True)
app.add_typer(pairs_app, name="pairs")

Model = Annotated[str, typer.Option(help="Backbone; see `pnapo-bench list models`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.beta=2000. Repeatable."),
]
Out = Annotated[Path, typer.Option(help="Output folder: shared stages in store/, runs in runs/.")]


@app.command()
def run(
    method: Annotated[str, typer.Option(help="Alignment method; see `pnapo-bench list methods`.")],
    model: Model = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Training seed.")] = 0,
    settings: Settings = None,
    out: Out = Path("outputs"),
    pairs: Annotated[Path | None, typer.Option(help="Pairs folder; by default built as data.* says.")] = None,
) -> None:
    """Train one method and evaluate it; the same command continues a run that was killed."""
    from pnapo_bench import config

    resolved = config.resolve(method, model, seed, settings or [])
    for line in config.without_effect(resolved, settings or []):
        print(f"warning: without effect: {line}", file=sys.stderr)
    if pairs is not None:
        from pnapo_bench import store

        store.manifest(pairs, "pairs")
    _writable(out)
    from pnapo_bench.run import execute

    folder = execute(resolved, out, pairs)
    from pnapo_bench import results

    for name, score in results.read(folder).record["scores"].items():
        print(f"{name}: {score['value']:.4f} (base {score['base']:.4f})")
    print(folder)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Output folders, folders of runs, or runs.")] = None,
    save: Annotated[Path | None, typer.Option(help="Also write report.md, CSV and pictures here.")] = None,
) -> None:
    """Compare finished runs: scores with intervals, difference from base, win rate, drift, cost."""
    from pnapo_bench import results
    from pnapo_bench.report.render import print_report, write_report

    found = results.find(runs or [Path("outputs")])
    print_report(found, _console())
    if save is not None:
        _writable(save)
        write_report(found, save)
        print(f"written: {save}")


@app.command("list")
def list_names(
    kind: Annotated[str, typer.Argument(metavar="methods|models|evals", help="What to list.")],
) -> None:
    """List the methods, models or evals, our own and other packages'."""
    from rich.markup import escape
    from rich.table import Table

    from pnapo_bench import registry

    kinds: dict[str, registry.Kind] = {"methods": "methods", "models": "backbones", "evals": "evals"}
    if kind not in kinds:
        raise unknown("list", kind, kinds)
    table = Table("name", "what it is", box=None)
    for name in registry.names(kinds[kind]):
        found = registry.get(kinds[kind], name)
        text = sys.modules[found.__module__].__doc__ or found.__doc__ or ""
        table.add_row(name, escape(text.strip().partition("\n")[0]))
    _console().print(table)


@app.command()
def doctor() -> None:
    """Check versions, devices and known broken combinations; exit status 1 when something is broken."""
    from rich.markup import escape
    from rich.table import Table

    from pnapo_bench.doctor import examine

    findings = examine()
    table = Table("", "subject", "finding", box=None)
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", escape(finding.subject), escape(finding.message))
    _console().print(table)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@pairs_app.command("build")
def pairs_build(
    model: Model = "tiny",
    settings: Settings = None,
    out: Out = Path("outputs"),
    images: Annotated[Path | None, typer.Option(help="Pair this image folder anew instead of generating.")] = None,
) -> None:
    """Generate images with their noise on record, score them, pair them."""
    from pnapo_bench import config

    resolved = config.resolve("pnapo", model, 0, settings or [])
    for line in [s for s in settings or [] if not s.startswith("data.")]:
        print(f"warning: without effect on pairs: {line}", file=sys.stderr)
    _writable(out)
    from pnapo_bench import pairs
    from pnapo_bench.run import device, load_backbone

    if images is not None:
        folder = pairs.build_from(out / "store", images, resolved.data.score, resolved.data.rule, device())
    else:
        folder = pairs.build(out / "store", load_backbone(model), resolved.data)
    _print_facts(pairs.inspect(folder))


@pairs_app.command("inspect")
def pairs_inspect(folder: Annotated[Path, typer.Argument(help="A pairs folder.")]) -> None:
    """Say what a pairs folder holds."""
    from pnapo_bench import pairs

    _print_facts(pairs.inspect(folder))


@pairs_app.command("verify")
def pairs_verify(
    folder: Annotated[Path, typer.Argument(help="A pairs folder.")],
    regenerate: Annotated[int, typer.Option(min=0, max=64, help="Images to generate anew and compare.")] = 0,
) -> None:
    """Check every file and noise hash of a pairs folder; optionally generate images again from their noise."""
    from pnapo_bench import pairs
    from pnapo_bench.run import load_backbone

    backbone = None
    if regenerate:
        _, source, _ = pairs.open_folder(folder)
        backbone = load_backbone(source.manifest["inputs"]["model"])
    _print_facts(pairs.verify(folder, backbone, regenerate))


def _console() -> Any:
    """A rich console; as wide as a report needs where no terminal says how wide it is."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def _writable(folder: Path) -> None:
    """Fails early, in one line, where nothing can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    probe.write_bytes(b"\0")
    probe.unlink()


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Global options."""
    if version:
        print(__version__)
        raise typer.Exit()


def main() -> NoReturn:
    """Entry point. Exit status: 0, 1 (training or a check failed), 2 (bad input), 130 (Ctrl-C)."""
    debug = "--debug" in sys.argv
    try:
        status = app(standalone_mode=False)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except UserError as error:
        _fail(str(error), 2, debug)
    except TrainingStopped as error:
        _fail(str(error), 1, debug)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(f"cannot read or write{where}: {error.strerror or error}; mend that and repeat the command", 2, debug)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a usage error of typer's own click
            _fail(f"{error.format_message()}; see {_help(error)}", error.exit_code, debug)
        raise
    if status == INTERRUPTED:
        _fail("interrupted; nothing is lost: the same command continues", INTERRUPTED, debug=False)
    sys.exit(status if isinstance(status, int) else 0)


def _help(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'pnapo-bench'} --help"


def _fail(message: str, status: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
