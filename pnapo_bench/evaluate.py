"""Evaluation: the same held-out prompts from the same noises for every model, one row for each image and eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pnapo_bench import images, prompts, scoring, store
from pnapo_bench.config import Evaluation
from pnapo_bench.contracts import Backbone
from pnapo_bench.images import Images

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["item", "noise", "prompt", "group", "seed", "noise_sha256", "scorer", "version"]


def request(config: Evaluation) -> images.Request:
    """What to draw; the seeds depend on neither the model nor the training."""
    chosen = prompts.held_out_prompts(config.split, config.prompts)
    return images.Request(f"{config.split} image", chosen, config.noises, config.seed, config.sampler)


@dataclass(frozen=True)
class Evaluated:
    """One model's pictures and scores, and what both took."""

    images: Path  # the image folder
    scores: pd.DataFrame  # KEYS and value
    cost: dict[str, float]  # seconds and flops


def evaluate(root: Path, backbone: Backbone, weights: str, config: Evaluation, label: str) -> Evaluated:
    """Draws and scores what is asked; stages that exist already are used."""
    import pandas as pd

    folder = images.build(root, backbone, weights, request(config), f"evaluating {label}")
    drawn = Images(folder)
    scored = [scoring.build(root, drawn, name, str(backbone.device)) for name in config.evals]
    costs = [drawn.manifest["cost"], *(store.manifest(one, "scores")["cost"] for one in scored)]
    scores = drawn.frame().merge(pd.concat([scoring.read(one) for one in scored]), on="image")[[*KEYS, "value"]]
    return Evaluated(folder, scores, {key: sum(cost[key] for cost in costs) for key in ("seconds", "flops")})


def paired(base: pd.DataFrame, trained: pd.DataFrame) -> pd.DataFrame:
    """KEYS, base, value and their difference; every image must have its partner from the same noise."""
    both = base.rename(columns={"value": "base"}).merge(trained, on=KEYS, how="outer", validate="one_to_one")
    assert both[["base", "value"]].notna().all().all(), "an image lacks its partner: prompts or noises differ"
    both["difference"] = both["value"] - both["base"]
    return both
