"""One run from pairs to record: the way of the data, stage by stage."""

from __future__ import annotations

import datetime
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic, environment, evaluate, pairs, reference, registry, results, store, trainer
from pnapo_bench.compute import Ledger
from pnapo_bench.config import Config
from pnapo_bench.contracts import Backbone, Method
from pnapo_bench.stream import Stream

if TYPE_CHECKING:
    import pandas as pd


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_backbone(name: str) -> Backbone:
    """The backbone of a name, on the GPU where there is one; libraries keep their progress to themselves."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    found: Backbone = registry.get("backbones", name)(device())
    return found


def execute(config: Config, out: Path, pairs_folder: Path | None = None) -> Path:
    """Carries out a run, or continues it; the run's folder, complete with ``record.json``.

    Args:
        config: resolved.
        out: holds ``store/`` (stages shared by all runs) and ``runs/``.
        pairs_folder: existing pairs; None builds what ``config.data`` says, or finds it in the store.
    """
    method: Method = registry.get("methods", config.method)(config.method_config)
    root = out / "store"
    backbone = load_backbone(config.model)
    if method.trains and pairs_folder is None:
        pairs_folder = pairs.build(root, backbone, config.data)
    identity = {
        "config": config.model_dump(mode="json"),
        "revision": backbone.revision,
        "pairs": pairs_folder.name if pairs_folder and method.trains else None,
    }
    folder = out / "runs" / f"{config.method}-{config.model}-s{config.seed}-{store.key_of(identity)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    with store.locked(folder / ".lock"):
        if (folder / "record.json").is_file():
            _say(f"{folder} is complete already")
            return folder
        atomic.write_json(folder / "config.json", identity)
        _run(config, method, backbone, pairs_folder, root, folder)
    return folder


def _run(
    config: Config, method: Method, backbone: Backbone, pairs_folder: Path | None, root: Path, folder: Path
) -> None:
    ledger = Ledger()
    started = _now()
    base = trained = evaluate.evaluate(root, backbone, "base", config.eval, "base")
    summary = None
    data_facts: dict[str, Any] | None = None
    if method.trains:
        assert pairs_folder is not None, "a method that trains has pairs"
        data = pairs.load(pairs_folder)
        if data.revision != backbone.revision:
            _say(
                f"warning: the pairs were drawn by model {data.revision[:12]}, trained is {backbone.revision[:12]}: "
                f"their noise is not this model's"
            )
        data_facts = {
            "folder": pairs_folder.name,
            "revision": data.revision,
            "pairs": len(data),
            "median_gap": float(data.gap.median()),
        }
        for name, cost in data.cost.items():
            ledger.book(name, **cost, shared=True)
        embeddings = backbone.encode_prompts(data.prompts)
        stream = Stream(config.seed, len(data), config.train.times, config.method_config.coupling)
        errors = None
        if method.needs_reference:
            reference_folder = reference.build(root, backbone, data, embeddings, stream, config.train)
            errors = reference.load(reference_folder)
            cost = store.manifest(reference_folder, "reference")["cost"]
            ledger.book("reference", **cost, shared=True)
        _say(f"training {config.method}: {config.train.steps} steps of {config.train.batch} pairs")
        summary = trainer.train(
            backbone=backbone,
            method=method,
            config=config.train,
            data=data,
            embeddings=embeddings,
            stream=stream,
            reference=errors,
            folder=folder,
        )
        ledger.book("training", summary.seconds, summary.flops, shared=False)
        weights = store.key_of({p.name: store.file_hash(p) for p in sorted((folder / "weights").glob("*.safetensors"))})
        trained = evaluate.evaluate(folder / "evaluation", backbone, weights, config.eval, config.method)
    ledger.book("evaluation", **trained.cost, shared=not method.trains)
    table = evaluate.paired(base.scores, trained.scores)
    atomic.write_with(folder / "scores.parquet", lambda path: table.to_parquet(path, index=False))
    record = {
        "schema_version": results.SCHEMA_VERSION,
        "run": folder.name,
        "method": config.method,
        "source": method.source,
        "model": config.model,
        "revision": backbone.revision,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "data": data_facts,
        "training": asdict(summary) if summary else None,
        "scores": summarise(table),
        "images": {
            "base": os.path.relpath(base.images, folder),
            "trained": os.path.relpath(trained.images, folder),
        },
        "ledger": ledger.as_dict(),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "git": environment.git_commit(),
        "started": started,
        "finished": _now(),
    }
    results.write(folder, record)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Means by eval, and by eval and group; coverage is the share of images that have a score."""
    found: dict[str, Any] = {}
    for name, rows in table.groupby("scorer"):
        groups = rows.groupby("group")[["base", "value"]].mean()
        found[str(name)] = {
            "version": str(rows["version"].iloc[0]),
            "coverage": float(rows["value"].notna().mean()),
            "base": float(rows["base"].mean()),
            "value": float(rows["value"].mean()),
            "groups": {str(g): {"base": float(r["base"]), "value": float(r["value"])} for g, r in groups.iterrows()},
        }
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
