"""A third party's method and eval; they need ``pnapo_bench.contracts`` and nothing else of the project."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pnapo_bench.contracts import Coupling, Errors, Field, LossOutput, Method, MethodConfig, Pairs


class ExampleHinge(Method):
    """loss = max(0, 1 + beta/2 D): as ``pnapo-fixed-beta``, but pairs that are right by a margin are left alone."""

    class Config(MethodConfig):
        coupling: Coupling = "prior"
        beta: float = Field(2000.0, gt=0, description="per-element mean errors")

    name = "example-hinge"
    source = "test plugin"

    def loss(self, errors: Errors, pairs: Pairs, progress: float) -> LossOutput:
        return LossOutput((1 + 0.5 * self.config.beta * errors.margin()).relu())


class ExampleBrightness:
    """The mean of all pixels, blind to the prompt."""

    name = "example_brightness"
    version = "1"
    unit = "[0, 1]"
    source = "test plugin"
    higher_is_better = True

    def load(self, device: str) -> None:
        """Nothing to load."""

    def score(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] in [0, 1], for images [B, 3, H, W] in [0, 1]."""
        return images.mean(dim=(1, 2, 3))
