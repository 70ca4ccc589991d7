"""Stages on disk: a folder named by the hash of all its inputs, complete when its manifest exists.

A stage writes its parts atomically and ``manifest.json`` last. Killed in the middle, it continues with the parts that
are there; a changed input has another folder. One process at a time works on a folder, others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pnapo_bench import atomic
from pnapo_bench.errors import UserError

SCHEMA = 1


def key_of(inputs: dict[str, Any]) -> str:
    """A short hash of JSON-able inputs."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage(root: Path, kind: str, inputs: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder of a stage, built if it is not complete.

    ``build(folder)`` writes the parts and returns what else the manifest shall say.
    """
    inputs = {"schema": SCHEMA, **inputs}
    folder = root / kind / key_of(inputs)
    if (folder / "manifest.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if not (folder / "manifest.json").is_file():
            extra = build(folder)
            files = {
                path.name: file_hash(path)
                for path in sorted(folder.iterdir())
                if path.suffix in (".parquet", ".safetensors")
            }
            atomic.write_json(folder / "manifest.json", {"kind": kind, "inputs": inputs, "files": files, **extra})
    return folder


def make_shards(
    folder: Path, count: int, make: Callable[[int], float], whole: Callable[[int], None]
) -> dict[str, float]:
    """Makes the shards of a stage that are not there yet; what all of them took, in seconds and FLOPs.

    ``make(index)`` writes a shard and returns its FLOPs; ``whole(index)`` is told of one that was there. A shard's
    ``cost-INDEX.json`` is written last, so its existence means that the shard is whole.
    """
    costs = []
    for index in range(count):
        file = folder / f"cost-{index:05}.json"
        if file.is_file():
            whole(index)
        else:
            start = time.perf_counter()
            flops = make(index)
            atomic.write_json(file, {"seconds": time.perf_counter() - start, "flops": flops})
        costs.append(json.loads(file.read_text()))
    return {key: sum(cost[key] for cost in costs) for key in ("seconds", "flops")}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a complete stage.

    Raises:
        UserError: there is none, or it is of another kind.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"expected a complete {kind} folder, found no manifest.json in {folder}; "
            f"repeat the command that made it, or give another folder"
        )
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete {folder} and build it again") from error
    if found.get("kind") != kind:
        raise UserError(f"expected a {kind} folder, {folder} is one of {found.get('kind')!r}")
    return found


def checked(folder: Path, name: str, files: dict[str, str]) -> Path:
    """The path of a stage's file, after comparing its hash with the manifest's.

    Raises:
        UserError: it is missing or has changed.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path} is missing; delete {folder} and build it again")
    if file_hash(path) != files.get(name):
        raise UserError(
            f"{path} is corrupted: its SHA-256 differs from the manifest's; delete {folder} and build it again"
        )
    return path
