"""The scoreboard: one row for all runs that differ in nothing but their seed.

Shape legend: S training seeds, P prompts, K evaluation noises of a prompt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pnapo_bench import registry, store
from pnapo_bench.errors import UserError
from pnapo_bench.results import Run
from pnapo_bench.stats import Interval, mean_interval, win_rate

if TYPE_CHECKING:
    import pandas as pd

TRAIN_STAGES = ("training", "reference")
"""What a method's training costs; the ledger's other stages make the data and evaluate."""


@dataclass(frozen=True)
class Entry:
    """One row: the runs of a method that differ in nothing but their seed."""

    name: str  # the method, and the settings that set it apart from other entries of that method
    runs: tuple[Run, ...]  # by seed
    scores: tuple[pd.DataFrame, ...]  # of each run

    @property
    def record(self) -> dict[str, Any]:
        """The first run's; but for the seed, what it says of the settings holds for all."""
        return self.runs[0].record

    @property
    def trained(self) -> bool:
        return self.record.get("training") is not None

    @property
    def evals(self) -> list[str]:
        """In the order of the configuration."""
        return list(self.record["config"]["eval"]["evals"])

    @property
    def seeds(self) -> list[int]:
        return [int(run.record["seed"]) for run in self.runs]

    def cube(self, scorer: str, column: str) -> NDArray[np.float64]:
        """``value``, ``base`` or ``difference`` of one eval, [S, P, K]."""
        tables = (frame[frame["scorer"] == scorer] for frame in self.scores)
        return np.stack(
            [t.pivot(index="item", columns="noise", values=column).to_numpy(dtype=np.float64) for t in tables]
        )


def entries(runs: Sequence[Run]) -> list[Entry]:
    """The rows: base first, then methods in the registry's order, then others.

    Raises:
        UserError: the runs cannot share a table, or their scores are incomplete.
    """
    _check_comparable(runs)
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.record["method"], store.key_of(_settings(run))), []).append(run)
    found = [
        _entry(group, [g[0] for (m, _), g in groups.items() if m == method]) for (method, _), group in groups.items()
    ]
    for entry in found:
        _check_scores(entry, found[0])
    order = ["base", *registry.TABLES["methods"]]
    return sorted(found, key=lambda e: (_rank(e.record["method"], order), e.record["method"], e.name))


def scoreboard(rows: Sequence[Entry]) -> pd.DataFrame:
    """One row an entry: who, every score, drift and cost.

    For each score ``NAME.mean``, ``NAME.difference`` (from base, paired) and ``NAME.win_rate`` (against base, ties
    half), each with ``_low`` and ``_high`` (``NAME.low`` and ``NAME.high`` for the mean). Costs are means over seeds;
    ``train_`` is training and reference errors, ``total_`` all stages of the ledger, shared ones in full.
    """
    import pandas as pd

    return pd.DataFrame([_row(entry) for entry in rows])


def families(rows: Sequence[Entry]) -> pd.DataFrame:
    """One row an entry: the mean of every score in every group of prompts, ``NAME.GROUP``."""
    import pandas as pd

    found = []
    for entry in rows:
        every = pd.concat(entry.scores)
        means = every.groupby(["scorer", "group"], sort=False)["value"].mean().astype(float)
        groups = every["group"].unique()
        found.append({"method": entry.name} | {f"{s}.{g}": means[s, g] for s in entry.evals for g in groups})
    return pd.DataFrame(found)


def contrasts(rows: Sequence[Entry], scorer: str) -> list[tuple[str, str, Interval]]:
    """(A, B, mean of A - B with its interval) for every two trained entries, paired by seed, prompt and noise.

    Seeds that only one of the two has are left out; two entries without a common seed have no contrast.
    """
    found = []
    for a, b in itertools.combinations([entry for entry in rows if entry.trained], 2):
        common = sorted(set(a.seeds) & set(b.seeds))
        if common:
            x, y = (e.cube(scorer, "value")[[e.seeds.index(seed) for seed in common]] for e in (a, b))
            found.append((a.name, b.name, mean_interval((x - y).mean(axis=2))))
    return found


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


# ---------------------------------------------------------------------------------------------- grouping


def _settings(run: Run) -> dict[str, Any]:
    """All that may set apart two runs of a method, but the seed; the pairs may be others than the config's own.

    Nothing sets apart two runs that do not train: where they can share a table, they are one.
    """
    if run.record.get("training") is None:
        return {}
    data = run.record.get("data") or {}
    settings = flat(run.record["config"]) | {"pairs": data.get("folder")}
    return {key: value for key, value in settings.items() if key != "seed"}


def _entry(runs: list[Run], variants: list[Run]) -> Entry:
    """The entry of some runs; ``variants`` has one run of each entry of the method, this one too."""
    runs = sorted(runs, key=lambda run: int(run.record["seed"]))
    if runs[0].record.get("training") is None:
        runs = runs[:1]  # the seed is that of training
    for one, other in itertools.pairwise(runs):
        if one.record["seed"] == other.record["seed"]:
            raise UserError(
                f"{one.folder} and {other.folder} are one run: same method, settings and seed "
                f"{one.record['seed']}; name only one of them"
            )
    mine, others = _settings(runs[0]), [_settings(run) for run in variants]
    keys = dict.fromkeys(key for other in others for key in other)
    differing = [key for key in keys if any(other.get(key) != mine.get(key) for other in others)]
    label = ", ".join(f"{key}={mine.get(key)}" for key in differing)
    name = runs[0].record["method"] + (f" ({label})" if label else "")
    return Entry(name, tuple(runs), tuple(run.scores for run in runs))


def _rank(name: str, order: list[str]) -> int:
    return order.index(name) if name in order else len(order)


# ---------------------------------------------------------------------------------------------- checks


def _check_comparable(runs: Sequence[Run]) -> None:
    if not runs:
        raise UserError("expected finished runs, got none")
    first = _measured(runs[0])
    for run in runs[1:]:
        other = _measured(run)
        differ = [key for key in first | other if first.get(key) != other.get(key)]
        if differ:
            what = "; ".join(f"{key} ({first.get(key)!r} and {other.get(key)!r})" for key in differ)
            raise UserError(
                f"runs measured in different ways cannot share a table: {runs[0].record['run']} and "
                f"{run.record['run']} differ in {what}; report them apart"
            )


def _measured(run: Run) -> dict[str, Any]:
    """What all runs of a table must share."""
    record = run.record
    versions = {f"version of {name}": score["version"] for name, score in record["scores"].items()}
    return {
        "model": record["model"],
        "model revision": record["revision"],
        **flat({"eval": record["config"]["eval"]}),
        **versions,
    }


def _check_scores(entry: Entry, first: Entry) -> None:
    keys = ["scorer", "item", "noise", "prompt", "noise_sha256"]
    wanted = first.scores[0][keys].sort_values(keys, ignore_index=True)
    for run, frame in zip(entry.runs, entry.scores, strict=True):
        missing = int(frame[["base", "value"]].isna().any(axis=1).sum())
        if missing:
            raise UserError(
                f"{missing} of {len(frame)} scores of {run.folder} are missing, and means over the rest would mislead; "
                f"repeat the run, or leave it out"
            )
        if not frame[keys].sort_values(keys, ignore_index=True).equals(wanted):
            raise UserError(
                f"{run.folder} and {first.runs[0].folder} have equal settings but other evaluation prompts or noises; "
                f"make both with one version of pnapo-bench"
            )
        if frame["item"].nunique() < 2 and len(entry.runs) < 2:
            raise UserError(
                f"{run.folder} was evaluated on one prompt, which allows no interval; set eval.prompts to 2 or more"
            )


# ---------------------------------------------------------------------------------------------- numbers


def _row(entry: Entry) -> dict[str, Any]:
    row = {
        "method": entry.name,
        "model": entry.record["model"],
        "seeds": len(entry.runs),
        "pairs_seen": entry.record["training"]["steps"] * entry.record["config"]["train"]["batch"]
        if entry.trained
        else 0,
    }
    for scorer in entry.evals:
        row |= _score(entry, scorer)
    return row | {
        "winner_drift": _drift(entry),
        "train_flops": _cost(entry, "flops", TRAIN_STAGES),
        "total_flops": _cost(entry, "flops"),
        "train_seconds": _cost(entry, "seconds", TRAIN_STAGES),
        "total_seconds": _cost(entry, "seconds"),
    }


def _score(entry: Entry, scorer: str) -> dict[str, float]:
    """Mean, difference from base, and win rate against base of one eval, as columns."""
    difference = entry.cube(scorer, "difference")
    better = difference if registry.get("evals", scorer).higher_is_better else -difference
    return (
        _columns(mean_interval(entry.cube(scorer, "value").mean(axis=2)), f"{scorer}.mean", f"{scorer}.")
        | _columns(mean_interval(difference.mean(axis=2)), f"{scorer}.difference", f"{scorer}.difference_")
        | _columns(win_rate(better), f"{scorer}.win_rate", f"{scorer}.win_rate_")
    )


def _columns(interval: Interval, mean: str, ends: str) -> dict[str, float]:
    return {mean: interval.mean, f"{ends}low": interval.low, f"{ends}high": interval.high}


def _drift(entry: Entry) -> float:
    """Mean over seeds of the winners' error over the reference's at the end; NaN without a reference."""
    drifts: list[Any] = [(run.record.get("training") or {}).get("winner_drift") for run in entry.runs]
    return math.nan if None in drifts else float(np.mean(drifts))


def _cost(entry: Entry, what: str, stages: Sequence[str] | None = None) -> float:
    """Mean over seeds of the seconds or FLOPs of some stages; None takes all."""
    ledgers = [run.record["ledger"] for run in entry.runs]
    return float(np.mean([sum(c[what] for n, c in x.items() if stages is None or n in stages) for x in ledgers]))
