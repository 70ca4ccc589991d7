"""The report, on a terminal and as files; both show the same sheets, so the same numbers."""

from __future__ import annotations

import html
import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic, config, registry
from pnapo_bench.report import pictures
from pnapo_bench.report.table import Entry, contrasts, entries, families, flat, scoreboard
from pnapo_bench.results import Run

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

BLANK = "-"


@dataclass(frozen=True)
class Sheet:
    """A table as text; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Report:
    """All that a report says, before it is drawn."""

    rows: list[Entry]
    board: pd.DataFrame
    groups: pd.DataFrame
    sheets: list[Sheet]
    warnings: list[str]
    notes: list[str]


def print_report(runs: Sequence[Run], console: Console) -> None:
    """Prints scores, groups, cost, warnings and what the numbers rest on; fits in 120 columns.

    Raises:
        UserError: the runs cannot share a table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    report = build(runs)
    for sheet in report.sheets:
        table = Table(title=Text(sheet.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for index, column in enumerate(sheet.columns):
            table.add_column(Text(column), justify="right" if index else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    for note in report.notes:
        console.print(Text(f"- {note}", style="dim"))


def write_report(runs: Sequence[Run], folder: Path) -> None:
    """Writes ``report.md``, ``report.csv`` (scoreboard), ``families.csv``, and ``pictures.png`` if there are images.

    Raises:
        UserError: the runs cannot share a table.
    """
    report = build(runs)
    picture = pictures.grid(report.rows)
    if picture is None:
        (folder / "pictures.png").unlink(missing_ok=True)
    else:
        atomic.write_with(folder / "pictures.png", lambda path: picture.save(path, "PNG"))
    atomic.write_with(folder / "report.csv", lambda path: report.board.to_csv(path, index=False))
    atomic.write_with(folder / "families.csv", lambda path: report.groups.to_csv(path, index=False))
    atomic.write_text(folder / "report.md", _markdown(report, picture is not None))


def build(runs: Sequence[Run]) -> Report:
    rows = entries(runs)
    board, groups = scoreboard(rows), families(rows)
    records: list[dict[Any, Any]] = board.to_dict("records")
    scorers = rows[0].evals
    sheets = [
        *(_score_sheet(scorer, rows, records) for scorer in scorers),
        *_contrast_sheets(scorers[0], rows),
        _groups_sheet(scorers[0], groups),
        _cost_sheet(rows, records),
    ]
    return Report(rows, board, groups, sheets, _warnings(rows, records), _notes(rows))


# ---------------------------------------------------------------------------------------------- numbers as text


def number(value: float, largest: float | None = None, sign: str = "") -> str:
    """Three decimals, two from 10 on; ``largest`` decides for all numbers of a cell."""
    decimals = 3 if abs(value if largest is None else largest) < 10 else 2
    return f"{value:{sign}.{decimals}f}"


def interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """``0.612 [0.580, 0.640]``."""
    largest = max(abs(low), abs(high))
    return f"{number(mean, largest, sign)} [{number(low, largest, sign)}, {number(high, largest, sign)}]"


def percent(mean: float, low: float, high: float) -> str:
    """``54.2 % [51.0, 57.3]``."""
    return f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def flops(value: float) -> str:
    """``3.1 TFLOP``."""
    power = min(int(math.log10(value)) // 3, 7) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}FLOP"


def seconds(value: float) -> str:
    """``84 s``, ``12.5 min``, ``3.1 h``."""
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


# ---------------------------------------------------------------------------------------------- sheets


def _score_sheet(scorer: str, rows: list[Entry], records: list[dict[Any, Any]]) -> Sheet:
    found = registry.get("evals", scorer)
    direction = "higher" if found.higher_is_better else "lower"
    columns = ("method", "seeds", "mean [95 %]", "Δ base [95 %]", "win rate [95 %]")
    cells = []
    for entry, record in zip(rows, records, strict=True):
        mean, difference, wins = _intervals(record, scorer)
        against = (interval(*difference, sign="+"), percent(*wins)) if entry.trained else (BLANK, BLANK)
        cells.append((entry.name, _seeds(entry), interval(*mean), *against))
    return Sheet(f"{scorer} ({found.unit}; {direction} is better)", columns, cells)


def _intervals(record: dict[Any, Any], scorer: str) -> list[tuple[float, float, float]]:
    """Mean, difference and win rate, each with its ends."""
    names = (("mean", ""), ("difference", "difference_"), ("win_rate", "win_rate_"))
    return [(record[f"{scorer}.{m}"], record[f"{scorer}.{e}low"], record[f"{scorer}.{e}high"]) for m, e in names]


def _contrast_sheets(scorer: str, rows: list[Entry]) -> list[Sheet]:
    """The trained methods against each other; none where there are not two."""
    found = contrasts(rows, scorer)
    if not found:
        return []
    cells = [(f"{a} - {b}", str(i.seeds), interval(i.mean, i.low, i.high, sign="+")) for a, b, i in found]
    return [Sheet(f"{scorer}, method against method", ("difference", "seeds", "mean [95 %]"), cells)]


def _groups_sheet(scorer: str, groups: pd.DataFrame) -> Sheet:
    columns = [column for column in groups.columns if column.startswith(f"{scorer}.")]
    cells = [(str(row["method"]), *(number(row[column]) for column in columns)) for _, row in groups.iterrows()]
    return Sheet(f"{scorer} by group", ("method", *(c.removeprefix(f"{scorer}.") for c in columns)), cells)


def _cost_sheet(rows: list[Entry], records: list[dict[Any, Any]]) -> Sheet:
    columns = ("method", "seeds", "pairs seen", "winner drift", "training", "training time", "all stages", "total time")
    cells = [
        (
            entry.name,
            _seeds(entry),
            f"{record['pairs_seen']:,}" if entry.trained else BLANK,
            BLANK if math.isnan(record["winner_drift"]) else number(record["winner_drift"]),
            flops(record["train_flops"]) if entry.trained else BLANK,
            seconds(record["train_seconds"]) if entry.trained else BLANK,
            flops(record["total_flops"]),
            seconds(record["total_seconds"]),
        )
        for entry, record in zip(rows, records, strict=True)
    ]
    return Sheet("cost of a run", columns, cells)


def _seeds(entry: Entry) -> str:
    return str(len(entry.runs)) if entry.trained else BLANK


# ---------------------------------------------------------------------------------------------- words


def _warnings(rows: list[Entry], records: list[dict[Any, Any]]) -> list[str]:
    """Alarms of the trainings, over-optimisation, unequal training."""
    found = []
    for entry, record in zip(rows, records, strict=True):
        for run in entry.runs:
            alarms = (run.record.get("training") or {}).get("alarms", [])
            found += [f"{entry.name}, seed {run.record['seed']}: {alarm}" for alarm in alarms]
        found += _over_optimised(entry, record)
    seen = sorted({record["pairs_seen"] for entry, record in zip(rows, records, strict=True) if entry.trained})
    if len(seen) > 1:
        found.append(f"not matched: the methods saw from {seen[0]:,} to {seen[-1]:,} pairs in training")
    return found


def _over_optimised(entry: Entry, record: dict[Any, Any]) -> list[str]:
    """What got worse beyond its interval while the score that labelled the training pairs got better beyond its own."""
    target = entry.record["config"]["data"]["score"]
    if not entry.trained or target not in entry.evals or _change(record, target) <= 0:
        return []
    fell = [scorer for scorer in entry.evals if _change(record, scorer) < 0]
    return [
        f"{entry.name}: over-optimised: {target}, by which its pairs were labelled, improved by "
        f"{interval(*_intervals(record, target)[1], sign='+')}, but {scorer} got worse by "
        f"{interval(*_intervals(record, scorer)[1], sign='+')}"
        for scorer in fell
    ]


def _change(record: dict[Any, Any], scorer: str) -> int:
    """1 where a score got better than base's beyond its interval, -1 where worse, else 0."""
    _, low, high = _intervals(record, scorer)[1]
    sign = 1 if registry.get("evals", scorer).higher_is_better else -1
    return sign * (int(low > 0) - int(high < 0))


def _notes(rows: list[Entry]) -> list[str]:
    """What the numbers mean, and what they leave out."""
    evaluation = rows[0].record["config"]["eval"]
    items = rows[0].scores[0].drop_duplicates("item")
    trained = [entry for entry in rows if entry.trained]
    single = [entry.name for entry in trained if len(entry.runs) == 1]
    distinct = items["prompt"].nunique()
    found = [
        f"Intervals hold 95 % (t-distribution), each row by itself: no correction for several comparisons. They rest "
        f"on {len(items)} evaluation prompts ({distinct} distinct) with {evaluation['noises']} noises each."
    ]
    if len(single) < len(trained):
        found.append("With several training seeds they cover other seeds and other prompts (crossed random effects).")
    if single:
        who = "" if len(single) == len(trained) else f"{', '.join(single)}: "
        found.append(f"{who}one training seed: the interval covers prompts only, not what another seed would give.")
    if len(trained) < len(rows):
        found.append("base is the untrained model.")
    if trained:
        found += [
            "Δ base: the mean difference from the untrained model, paired by prompt and noise.",
            "Method against method: paired by training seed, prompt and noise; where 0 is inside, these seeds and "
            "prompts show no difference.",
            "Win rate: the share of images that score better than the untrained model's of the same prompt and noise; "
            "ties count half.",
            "Winner drift: the winners' error over the reference model's at the end of training; above 1 the winners "
            "have become less likely.",
        ]
    found.append(
        "Cost: means over seeds; training includes the reference errors; all stages adds data, scoring and evaluation, "
        "shared ones in full."
    )
    if evaluation["split"] != "eval":
        found.append(f"Prompts of the {evaluation['split']} split: for choosing settings, not for claims.")
    return found


# ---------------------------------------------------------------------------------------------- Markdown


def _markdown(report: Report, picture: bool) -> str:
    title = f"# Alignment methods on {report.rows[0].record['model']}"
    parts = [title, *map(_sheet_markdown, report.sheets)]
    if report.warnings:
        parts.append("## Warnings\n\n" + _bullets(report.warnings))
    parts += ["## How to read the numbers\n\n" + _bullets(report.notes), "## Pictures\n\n" + _picture(picture)]
    return "\n\n".join([*parts, *_basis(report.rows)]) + "\n"


def _sheet_markdown(sheet: Sheet) -> str:
    lines = [sheet.columns, ("---", *["---:"] * (len(sheet.columns) - 1)), *sheet.rows]
    return f"## {_escaped(sheet.title)}\n\n" + "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _picture(exists: bool) -> str:
    if not exists:
        return "None: image folders of these runs are missing."
    marks = f"Where {pictures.MARKED} is known, a green frame says passed, a red one failed."
    return (
        f"![The same prompts and noises under every method](pictures.png)\n\nChosen by rule: {pictures.CHOICE}. {marks}"
    )


def _basis(rows: list[Entry]) -> list[str]:
    """Runs, seeds, commits, commands, versions and hardware."""
    runs = [(entry, run) for entry in rows for run in entry.runs]
    sheet = Sheet(
        "Runs",
        ("run", "method", "seed", "revision of the model", "pairs", "commit"),
        [
            (
                str(run.record["run"]),
                entry.name,
                str(run.record["seed"]),
                str(run.record["revision"]),
                str((run.record.get("data") or {}).get("folder", BLANK)),
                str(run.record["git"] or "not from a checkout"),
            )
            for entry, run in runs
        ],
    )
    every = [run for _, run in runs]
    commands = "\n".join(command(run) for run in every)
    return [
        _sheet_markdown(sheet),
        f"## Commands\n\n```sh\n{commands}\n```",
        "## Versions\n\n" + _bullets(_distinct(every, lambda run: run.record["versions"])),
        "## Hardware\n\n" + _bullets(_distinct(every, lambda run: run.record["hardware"])),
    ]


def command(run: Run) -> str:
    """What repeats a run: the settings that differ from this version's defaults."""
    record = run.record
    method, model = record["method"], record["model"]
    settings = _keyed(record["config"])
    if method in registry.names("methods") and model in registry.names("backbones"):
        defaults = _keyed(config.resolve(method, model, 0, []).model_dump(mode="json"))
        settings = {key: value for key, value in settings.items() if key not in defaults or defaults[key] != value}
    words = ["pnapo-bench", "run", "--method", method, "--model", model, "--seed", str(record["seed"])]
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(words)


def _keyed(resolved: dict[str, Any]) -> dict[str, Any]:
    """Settings under the keys of ``--set``."""
    parts = {"data": resolved["data"], "train": resolved["train"], "eval": resolved["eval"]}
    return flat({"method": resolved["method_config"], **parts})


def _distinct(runs: list[Run], facts: Callable[[Run], dict[str, Any]]) -> list[str]:
    """Each different set of facts as a line; with the runs that have it, where there are several."""
    found: dict[str, list[str]] = {}
    for run in runs:
        line = ", ".join(f"{name} {value}" for name, value in facts(run).items())
        found.setdefault(line, []).append(run.record["run"])
    return list(found) if len(found) == 1 else [f"{line} ({', '.join(names)})" for line, names in found.items()]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|")
