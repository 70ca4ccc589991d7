"""Evaluation: the same held-out prompts from the same noises for every model, one row for each image and eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pnapo_bench import images, prompts, registry, scoring
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


def evaluate(root: Path, backbone: Backbone, weights: str, config: Evaluation, label: str) -> tuple[Path, pd.DataFrame]:
    """The image folder, and scores with the columns KEYS and value."""
    import pandas as pd

    for name in config.evals:
        registry.get("evals", name)
    folder = images.build(root, "images", backbone, weights, request(config), f"evaluating {label}")
    drawn = Images(folder)
    scores = pd.concat([scoring.read(scoring.build(root, drawn, name, str(backbone.device))) for name in config.evals])
    return folder, drawn.frame().merge(scores, on="image")[[*KEYS, "value"]]


def paired(base: pd.DataFrame, trained: pd.DataFrame) -> pd.DataFrame:
    """KEYS, base, value and their difference; every image must have its partner from the same noise."""
    both = base.rename(columns={"value": "base"}).merge(trained, on=KEYS, how="outer", validate="one_to_one")
    assert both[["base", "value"]].notna().all().all(), "an image lacks its partner: prompts or noises differ"
    both["difference"] = both["value"] - both["base"]
    return both
