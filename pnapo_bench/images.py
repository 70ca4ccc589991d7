"""The image stage: pictures with their prior noise on record.

A folder holds shards ``images-00000.parquet`` (one row an image: what it shows, its noise, its PNG) with
``latents-00000.safetensors``, and ``manifest.json``. The noise of an image is drawn from its own seed on the CPU in
float32, so it depends on neither batch size nor device; seed and SHA-256 are stored, and compared on reading.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic, compute, noise, store
from pnapo_bench.config import Sampler
from pnapo_bench.contracts import Backbone
from pnapo_bench.errors import UserError
from pnapo_bench.progress import track
from pnapo_bench.prompts import Prompt

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

SHARD = 256  # images; the unit of writing and of resuming
BATCH = 64  # images per forward pass


@dataclass(frozen=True)
class Request:
    """What to generate: ``noises`` images of every prompt, seeds a function of (purpose, seed, item, noise)."""

    purpose: str
    prompts: Sequence[Prompt]
    noises: int
    seed: int
    sampler: Sampler

    def rows(self) -> list[dict[str, Any]]:
        """One row an image: item (index of the prompt), noise (index), prompt, group, seed."""
        return [
            {
                "image": item * self.noises + k,
                "item": item,
                "noise": k,
                "prompt": prompt.text,
                "group": prompt.group,
                "seed": noise.seed_of(self.purpose, self.seed, item, k),
            }
            for item, prompt in enumerate(self.prompts)
            for k in range(self.noises)
        ]


def inputs_of(backbone: Backbone, weights: str, request: Request) -> dict[str, Any]:
    """Everything that decides the pictures; ``weights`` is the hash of what was trained, or ``base``."""
    return {
        "model": backbone.name,
        "revision": backbone.revision,
        "weights": weights,
        "prompts": store.key_of({"prompts": [asdict(p) for p in request.prompts]}),
        "purpose": request.purpose,
        "noises": request.noises,
        "seed": request.seed,
        "sampler": request.sampler.model_dump(),
        "noise": {"dtype": "float32", "shape": list(backbone.latent_shape)},
    }


def build(root: Path, backbone: Backbone, weights: str, request: Request, label: str) -> Path:
    """The folder with the requested images, generated if it is not complete."""
    inputs = inputs_of(backbone, weights, request)
    return store.stage(root, "images", inputs, lambda folder: _generate(folder, backbone, request, label))


def _generate(folder: Path, backbone: Backbone, request: Request, label: str) -> dict[str, Any]:
    rows = request.rows()
    shards = [rows[i : i + SHARD] for i in range(0, len(rows), SHARD)]
    flops = flops_per_image(backbone, request.sampler)
    with track(label, len(rows)) as advance:

        def make(index: int) -> float:
            _generate_shard(folder, index, shards[index], backbone, request.sampler, advance)
            return len(shards[index]) * flops

        cost = store.make_shards(folder, len(shards), make, whole=lambda index: advance(len(shards[index])))
    return {"images": len(rows), "shards": len(shards), "cost": cost}


def _generate_shard(
    folder: Path,
    index: int,
    rows: list[dict[str, Any]],
    backbone: Backbone,
    sampler: Sampler,
    advance: Callable[[int], None],
) -> None:
    import pandas as pd
    import torch

    latents, pngs, hashes = [], [], []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        prior = noise.prior_noise([row["seed"] for row in batch], backbone.latent_shape)
        drawn = latents_of(backbone, [row["prompt"] for row in batch], prior, sampler)
        pictures = backbone.decode(drawn)
        latents.append(drawn.float().cpu())
        hashes += [noise.fingerprint(one) for one in prior]
        pngs += [to_png(picture) for picture in pictures]
        advance(len(batch))
    atomic.write_tensors(folder / f"latents-{index:05}.safetensors", {"latents": torch.cat(latents)})
    frame = pd.DataFrame(rows)
    frame["noise_sha256"] = hashes
    frame["noise_dtype"] = "float32"
    frame["noise_shape"] = [list(backbone.latent_shape)] * len(rows)
    frame["steps"], frame["guidance"] = sampler.steps, sampler.guidance
    frame["latents"] = f"latents-{index:05}.safetensors"
    frame["row"] = range(len(rows))
    frame["png"] = pngs
    atomic.write_with(folder / f"images-{index:05}.parquet", lambda path: frame.to_parquet(path, index=False))


def latents_of(backbone: Backbone, prompts: Sequence[str], prior: Tensor, sampler: Sampler) -> Tensor:
    """Latents [B, C, H, W] of B prompts from their prior noise, on the backbone's device."""
    from pnapo_bench.sampler import sample

    conditioning = backbone.encode_prompts(prompts)
    empty = backbone.encode_prompts([""] * len(prompts)) if sampler.guidance > 1 else None
    return sample(backbone, prior, conditioning, empty, sampler.steps, sampler.guidance)


def flops_per_image(backbone: Backbone, sampler: Sampler) -> float:
    """Counted on one image: all velocity evaluations and the decoder (the text encoder is left out)."""
    import torch

    one = backbone.encode_prompts([""])
    x = torch.zeros(1, *backbone.latent_shape, device=backbone.device)
    with torch.no_grad():
        step = compute.count_flops(lambda: backbone.velocity(x, torch.ones(1, device=x.device), one))
        decoder = compute.count_flops(lambda: backbone.decode(x))
    return sampler.steps * step * (2 if sampler.guidance > 1 else 1) + decoder


def to_png(picture: Tensor) -> bytes:
    """A picture [3, H, W] in [0, 1] as PNG."""
    from PIL import Image

    file = io.BytesIO()
    pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def from_png(png: bytes) -> Tensor:
    """Pixels [3, H, W] in [0, 1] of a PNG."""
    import numpy as np
    import torch
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


class Images:
    """A complete image folder; everything read from it is verified first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = store.manifest(folder, "images")
        self.files: dict[str, str] = self.manifest["files"]
        self._rows: dict[bool, pd.DataFrame] = {}

    def frame(self, pixels: bool = False) -> pd.DataFrame:
        """One row an image; with ``pixels``, its PNG too."""
        import pandas as pd
        import pyarrow.parquet as pq

        if pixels not in self._rows:
            parts = []
            for index in range(self.manifest["shards"]):
                path = store.checked(self.folder, f"images-{index:05}.parquet", self.files)
                names = [n for n in pq.read_schema(path).names if pixels or n != "png"]
                parts.append(pd.read_parquet(path, columns=names))
            self._rows[pixels] = pd.concat(parts, ignore_index=True)
        return self._rows[pixels]

    def latents(self) -> Tensor:
        """All latents [images, C, H, W], float32."""
        import torch
        from safetensors.torch import load_file

        names = [f"latents-{index:05}.safetensors" for index in range(self.manifest["shards"])]
        return torch.cat([load_file(store.checked(self.folder, n, self.files))["latents"] for n in names])

    def prior_noise(self, images: Sequence[int]) -> Tensor:
        """The recorded prior noise [B, C, H, W] of some images.

        Raises:
            UserError: what the seed gives is not what was recorded.
        """
        frame = self.frame()
        rows = frame.iloc[list(images)]
        shape = tuple(self.manifest["inputs"]["noise"]["shape"])
        prior = noise.prior_noise([int(seed) for seed in rows["seed"]], shape)
        for one, image, seed, recorded in zip(prior, rows["image"], rows["seed"], rows["noise_sha256"], strict=True):
            if noise.fingerprint(one) != recorded:
                raise UserError(
                    f"image {image} of {self.folder}: the noise drawn from seed {seed} has another hash than the one "
                    f"on record ({recorded[:12]}...); the folder was altered, build it again"
                )
        return prior
