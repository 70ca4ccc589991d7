"""Noise-tracked preference pairs: the sextuples (prompt, winner, loser, noise of each, reward gap).

Pairs are made from an image folder and a score folder by a rule, so that another reward or another rule generates no
image anew. ``pairs.parquet`` holds image numbers, seeds and noise hashes; pictures and latents stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic, images, scoring, store
from pnapo_bench.config import Data
from pnapo_bench.contracts import Backbone
from pnapo_bench.errors import UserError
from pnapo_bench.images import Images
from pnapo_bench.prompts import training_prompts

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


PURPOSE = "training image"  # of the images that pairs are made of; part of the key of their noise


def build(root: Path, backbone: Backbone, data: Data) -> Path:
    """The pairs folder of a configuration; whatever stage exists already is used."""
    request = images.Request(
        PURPOSE, training_prompts(data.prompts, data.seed), data.images_per_prompt, data.seed, data.sampler
    )
    image_folder = images.build(root, backbone, "base", request, "generating")
    return build_from(root, image_folder, data.score, data.rule, str(backbone.device))


def build_from(root: Path, image_folder: Path, score: str, rule: str, device: str) -> Path:
    """Pairs of an existing image folder under a score and a rule.

    Raises:
        UserError: the images are not for training, or one per prompt, or their scores do not tell them apart.
    """
    source = Images(image_folder)
    purpose, count = (source.manifest["inputs"][key] for key in ("purpose", "noises"))
    if purpose != PURPOSE:
        raise UserError(f"{image_folder} holds pictures for evaluation ({purpose}); nothing is trained on those")
    if count < 2:
        raise UserError(f"pairs need two images of each prompt, {image_folder} has {count}")
    score_folder = scoring.build(root, source, score, device)
    inputs = {"images": image_folder.name, "scores": score_folder.name, "rule": rule}
    return store.stage(root, "pairs", inputs, lambda folder: _pair(folder, source, scoring.read(score_folder), rule))


def _pair(folder: Path, source: Images, scores: pd.DataFrame, rule: str) -> dict[str, Any]:
    frame = source.frame().merge(scores, on="image", validate="one_to_one")
    if frame["value"].isna().any():
        missing = int(frame["value"].isna().sum())
        raise UserError(f"{missing} of {len(frame)} images in {source.folder} have no score; pairs need every one")
    pairs = sextuples(frame, rule)
    if pairs.empty:
        raise UserError(f"no pair of {source.folder} has a winner: all scores are equal; use more prompts or images")
    atomic.write_with(folder / "pairs.parquet", lambda path: pairs.to_parquet(path, index=False))
    return {"pairs": len(pairs), "ties": frame["item"].nunique() - len(pairs)}


def sextuples(frame: pd.DataFrame, rule: str) -> pd.DataFrame:
    """One row a prompt, from columns image, item, noise, prompt, group, seed, noise_sha256, value; ties are left out.

    ``two`` takes the first two images of each prompt, ``best-worst`` the extremes of all.
    """
    import pandas as pd

    if rule == "two":
        frame = frame[frame["noise"] < 2]
    by_item = frame.groupby("item", sort=True)["value"]
    winner = frame.loc[by_item.idxmax()].set_index("item")
    loser = frame.loc[by_item.idxmin()].set_index("item")
    pairs = pd.DataFrame({"prompt": winner["prompt"], "group": winner["group"]})
    for side, rows in (("winner", winner), ("loser", loser)):
        pairs[f"{side}_image"] = rows["image"]
        pairs[f"{side}_seed"] = rows["seed"]
        pairs[f"{side}_noise_sha256"] = rows["noise_sha256"]
        pairs[f"{side}_score"] = rows["value"]
    pairs["gap"] = pairs["winner_score"] - pairs["loser_score"]
    return pairs[pairs["gap"] > 0].reset_index()


@dataclass(frozen=True)
class PairData:
    """Pairs in memory, P of them, for training."""

    folder: Path
    revision: str  # of the model that drew the images
    frame: pd.DataFrame
    winner: Tensor  # [P, C, H, W] latents
    loser: Tensor
    winner_noise: Tensor  # [P, C, H, W] recorded prior noise
    loser_noise: Tensor
    gap: Tensor  # [P]
    cost: dict[str, dict[str, float]]  # what generating and scoring took

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def prompts(self) -> list[str]:
        return list(self.frame["prompt"])


def open_folder(folder: Path) -> tuple[pd.DataFrame, Images, dict[str, Any]]:
    """Rows, images and manifest of a pairs folder, verified.

    Raises:
        UserError: something is missing, corrupted or does not belong together.
    """
    import pandas as pd

    manifest = store.manifest(folder, "pairs")
    frame = pd.read_parquet(store.checked(folder, "pairs.parquet", manifest["files"]))
    source = Images(folder.parent.parent / "images" / manifest["inputs"]["images"])
    recorded = source.frame().set_index("image")["noise_sha256"]
    for side in ("winner", "loser"):
        differs = recorded.loc[frame[f"{side}_image"]].to_numpy() != frame[f"{side}_noise_sha256"].to_numpy()
        if differs.any():
            row = int(differs.argmax())
            raise UserError(
                f"{folder}: the noise hash of the {side} in row {row} is not that of image "
                f"{frame[f'{side}_image'].iloc[row]}; the folder was altered, build it again"
            )
    return frame, source, manifest


def load(folder: Path) -> PairData:
    """Reads and verifies pairs: file hashes, and every recorded noise against what its seed gives."""
    import torch

    frame, source, manifest = open_folder(folder)
    latents = source.latents()

    def side(name: str) -> tuple[Tensor, Tensor]:
        numbers: Sequence[int] = frame[f"{name}_image"].tolist()
        return latents[numbers], source.prior_noise(numbers)

    winner, winner_noise = side("winner")
    loser, loser_noise = side("loser")
    score_folder = folder.parent.parent / "scores" / manifest["inputs"]["scores"]
    cost = {
        "generating": source.manifest["cost"],
        "scoring": store.manifest(score_folder, "scores")["cost"],
    }
    gap = torch.tensor(frame["gap"].to_numpy(), dtype=torch.float32)
    revision = source.manifest["inputs"]["revision"]
    return PairData(folder, revision, frame, winner, loser, winner_noise, loser_noise, gap, cost)


def inspect(folder: Path) -> dict[str, Any]:
    """What a pairs folder holds, in numbers."""
    frame, source, manifest = open_folder(folder)
    gap = frame["gap"]
    return {
        "folder": str(folder),
        "pairs": len(frame),
        "ties left out": manifest["ties"],
        "images": source.manifest["images"],
        "rule": manifest["inputs"]["rule"],
        "model": f"{source.manifest['inputs']['model']} ({source.manifest['inputs']['revision'][:12]})",
        "sampler": json.dumps(source.manifest["inputs"]["sampler"]),
        "winner's mean score": round(float(frame["winner_score"].mean()), 4),
        "loser's mean score": round(float(frame["loser_score"].mean()), 4),
        "reward gap, quartiles": " / ".join(f"{gap.quantile(q):.3f}" for q in (0.25, 0.5, 0.75)),
        **{f"pairs of {group}": int(count) for group, count in frame["group"].value_counts().items()},
    }


def verify(folder: Path, backbone: Backbone | None, regenerate: int) -> dict[str, int]:
    """Checks every file and every noise; with a backbone, generates some images anew and compares them bit for bit.

    Raises:
        UserError: the first thing that does not agree.
    """
    import torch

    from pnapo_bench.config import Sampler

    data = load(folder)
    checked = {"pairs": len(data), "noises": 2 * len(data)}
    if backbone is None or not regenerate:
        return checked
    _, source, _ = open_folder(folder)
    inputs = source.manifest["inputs"]
    if inputs["revision"] != backbone.revision:
        raise UserError(
            f"{source.folder} was made by {inputs['model']} {inputs['revision'][:12]}, the model here is "
            f"{backbone.revision[:12]}; regenerate with the weights it was made by"
        )
    sampler = Sampler(**inputs["sampler"])
    rows = source.frame().head(images.BATCH)  # the batch as it was generated, so that every bit can agree
    prior = source.prior_noise(rows["image"].tolist())
    again = images.latents_of(backbone, list(rows["prompt"]), prior, sampler).float().cpu()
    stored = source.latents()[: len(rows)]
    count = min(regenerate, len(rows))
    worst = (again - stored)[:count].abs().max().item()
    if worst > 1e-3:
        raise UserError(
            f"image generated anew from its recorded noise differs by up to {worst:.2g} from the latents in "
            f"{source.folder}; the folder or the model was altered"
        )
    checked["regenerated"] = count
    checked["regenerated, equal in every bit"] = int(torch.eq(again, stored)[:count].flatten(1).all(1).sum())
    return checked
