"""How cleanly a picture is drawn, whatever it shows: held out from training, so that over-optimisation shows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class ShapesQuality:
    """PSNR of the picture against its own detected objects drawn cleanly; no checkpoint, blind to the prompt."""

    name = "shapes_quality"
    version = "1"
    unit = "dB, at most 50"
    source = "clean redrawing of the embedded world"
    higher_is_better = True

    def load(self, device: str) -> None:
        """Nothing to load."""

    def score(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] in dB, for images [B, 3, 48, 48] in [0, 1]."""
        from pnapo_bench.world.verify import cleanliness

        return cleanliness(images)
