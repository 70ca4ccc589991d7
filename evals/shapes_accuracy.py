"""1 where the picture shows exactly what the prompt says, else 0: the embedded world's counterpart of GenEval."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ShapesAccuracy:
    """Exact pass of the embedded world's verifier; no checkpoint. Averaged over families as GenEval averages tags."""

    name = "shapes_accuracy"
    version = "1"
    unit = "fraction"
    source = "exact verifier of the embedded world"
    higher_is_better = True

    def load(self, device: str) -> None:
        """Nothing to load."""

    def score(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] of 0 or 1, for images [B, 3, 48, 48] in [0, 1]."""
        from pnapo_bench.world.scenes import parse
        from pnapo_bench.world.verify import judge

        return torch.tensor([float(v.passed) for v in judge(images, [parse(p) for p in prompts])])
