"""The score stage: one float32 for each image and eval, stored under the image folder's and the eval's identity."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic, registry, store
from pnapo_bench.errors import UserError
from pnapo_bench.images import Images, from_png
from pnapo_bench.progress import track

if TYPE_CHECKING:
    import pandas as pd

BATCH = 64


def build(root: Path, images: Images, eval_name: str, device: str) -> Path:
    """The folder with the scores of one eval on an image folder, computed if it is not complete."""
    scorer = registry.get("evals", eval_name)()
    inputs = {
        "images": images.folder.name,
        "files": store.key_of(images.files),
        "eval": scorer.name,
        "version": scorer.version,
    }
    return store.stage(root, "scores", inputs, lambda folder: _score(folder, images, scorer, device))


def _score(folder: Path, images: Images, scorer: Any, device: str) -> dict[str, Any]:
    import pandas as pd
    import torch

    start = time.perf_counter()
    frame = images.frame(pixels=True)
    scorer.load(device)
    parts = []
    with track(scorer.name, len(frame)) as advance, torch.no_grad():
        for begin in range(0, len(frame), BATCH):
            batch = frame.iloc[begin : begin + BATCH]
            pictures = torch.stack([from_png(png) for png in batch["png"]])
            values = scorer.score(images=pictures, prompts=list(batch["prompt"]))
            if values.shape != (len(batch),):
                raise UserError(f"eval {scorer.name!r} gave shape {tuple(values.shape)}, expected ({len(batch)},)")
            parts.append(values.float().cpu())
            advance(len(batch))
    table = pd.DataFrame(
        {"image": frame["image"], "scorer": scorer.name, "version": scorer.version, "value": torch.cat(parts).numpy()}
    )
    atomic.write_with(folder / "scores.parquet", lambda path: table.to_parquet(path, index=False))
    return {"scored": int(table["value"].notna().sum()), "cost": {"seconds": time.perf_counter() - start, "flops": 0.0}}


def read(folder: Path) -> pd.DataFrame:
    """Columns image, scorer, version, value."""
    import pandas as pd

    return pd.read_parquet(store.checked(folder, "scores.parquet", store.manifest(folder, "scores")["files"]))
