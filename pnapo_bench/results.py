"""Records of finished runs: ``record.json`` and ``scores.parquet`` in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic
from pnapo_bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
REQUIRED = ("run", "method", "model", "revision", "seed", "config", "scores", "ledger", "versions", "hardware", "git")


@dataclass(frozen=True)
class Run:
    """A finished run as read from disk."""

    folder: Path
    record: dict[str, Any]

    @property
    def scores(self) -> pd.DataFrame:
        """One row for each image and eval: evaluate.KEYS, base, value, difference."""
        import pandas as pd

        path = self.folder / "scores.parquet"
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {self.folder} and repeat its run")
        return pd.read_parquet(path)

    def images(self, which: str) -> Path:
        """The image folder of ``base`` or ``trained``."""
        relative: str = self.record["images"][which]
        return (self.folder / relative).resolve()


def write(folder: Path, record: dict[str, Any]) -> None:
    """Written last, so its existence means that the run is complete."""
    atomic.write_json(folder / "record.json", record)


def read(folder: Path) -> Run:
    """One run.

    Raises:
        UserError: no record, or not one that this version reads.
    """
    path = folder / "record.json"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"expected a finished run, found no record.json in {folder}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete {folder} and repeat its run") from error
    if record.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {record.get('schema_version')!r}, this version reads {SCHEMA_VERSION}"
        )
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; delete {folder} and repeat its run")
    return Run(folder, record)


def find(paths: Sequence[Path]) -> list[Run]:
    """The finished runs in folders of runs, output folders, or run folders themselves.

    Raises:
        UserError: there is none.
    """
    folders = []
    for path in paths:
        if (path / "record.json").is_file():
            folders.append(path)
        else:
            below = path / "runs" if (path / "runs").is_dir() else path
            folders += sorted(record.parent for record in below.glob("*/record.json"))
    if not folders:
        raise UserError(
            f"no finished run in {', '.join(map(str, paths))}; start one with: pnapo-bench run --method pnapo"
        )
    return [read(folder) for folder in folders]
