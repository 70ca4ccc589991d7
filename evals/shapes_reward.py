"""How nearly the picture shows what the prompt says, smooth in [0, 1]: the embedded world's training label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ShapesReward:
    """Smooth judgement of the embedded world's verifier; no checkpoint."""

    name = "shapes_reward"
    version = "1"
    unit = "[0, 1]"
    source = "smooth verifier of the embedded world"
    higher_is_better = True

    def load(self, device: str) -> None:
        """Nothing to load."""

    def score(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] in [0, 1], for images [B, 3, 48, 48] in [0, 1]."""
        from pnapo_bench.world.scenes import parse
        from pnapo_bench.world.verify import judge

        return torch.tensor([v.reward for v in judge(images, [parse(p) for p in prompts])])
