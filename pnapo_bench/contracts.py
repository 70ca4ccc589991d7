"""What crosses module lines. A method, an eval or a backbone needs this file and ``flow`` and nothing else.

Shape legend: B images or pairs, C H W latent, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Coupling = Literal["prior", "shared", "independent", "permuted"]
"""Which noise belongs to an image in training:

- ``prior``: the recorded noise that the image was generated from;
- ``shared``: one fresh noise for winner and loser (Diffusion-DPO as published);
- ``independent``: a fresh noise for each;
- ``permuted``: the recorded noise of another pair, fixed for the run (matched noise against merely fixed noise).
"""


class Strict(BaseModel):
    """A frozen configuration in which an unknown key or a value out of range is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Errors:
    """Squared errors (``flow.squared_error``) of a batch of pairs, each [B]; None where a method needs none."""

    winner: Tensor
    loser: Tensor | None = None
    winner_ref: Tensor | None = None
    loser_ref: Tensor | None = None

    def margin(self) -> Tensor:
        """D [B] of ``flow``."""
        from pnapo_bench import flow

        if self.loser is None or self.winner_ref is None or self.loser_ref is None:
            raise ValueError("a margin needs the loser and the reference; declare needs_loser and needs_reference")
        return flow.margin(self.winner, self.winner_ref, self.loser, self.loser_ref)


@dataclass(frozen=True)
class Pairs:
    """What a method may know of a batch of pairs beside the errors."""

    gap: Tensor  # [B] reward of the winner minus reward of the loser, in the reward's own unit, >= 0
    prompt: Sequence[str]


@dataclass(frozen=True)
class LossOutput:
    """The loss of each pair, which the trainer averages, and what it logs."""

    loss: Tensor  # [B]
    beta: Tensor | None = None  # [B] or [], the effective regularisation strength


class MethodConfig(Strict):
    coupling: Coupling


class Method:
    """One alignment method: a loss, and what it needs to be computed. No optimiser, device, loop or logging.

    Subclasses set the class variables and ``loss``; their docstring names paper, equation and the one difference from
    the neighbouring method.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    needs_loser: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        self.config = config

    def loss(self, errors: Errors, pairs: Pairs, progress: float) -> LossOutput:
        """Loss of a batch; ``progress`` = steps done / all steps, in [0, 1)."""
        raise NotImplementedError


# ---------------------------------------------------------------------------------------------- evals


class Eval(Protocol):
    """One score of pictures. Aggregation lives in ``stats``."""

    name: ClassVar[str]
    version: ClassVar[str]
    unit: ClassVar[str]
    source: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def load(self, device: str) -> None:
        """Reads weights and vocabularies; called once before ``score``."""

    def score(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B], float32, of images [B, 3, H, W] in [0, 1]; NaN where an image cannot be scored."""


# ---------------------------------------------------------------------------------------------- backbones

Conditioning = dict[str, "Tensor"]
"""What the text says to the model, each value [B, ...]; opaque to everybody but the backbone."""


class Backbone(Protocol):
    """One model family: everything that the loops need to know of it."""

    name: str
    revision: str  # hash of the weights
    latent_shape: tuple[int, ...]  # C, H, W
    lora_targets: Sequence[str]
    device: torch.device
    transformer: torch.nn.Module  # what is trained

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Embeddings of prompts; the empty prompt is the unconditional one."""

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """v_theta [B, C, H, W] at t [B] in [0, 1] (conventions: ``flow``)."""

    def scheduler(self, steps: int) -> Any:
        """A fresh diffusers flow-matching scheduler with its timesteps set."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], float32, on the CPU."""

    def add_lora(self, rank: int, alpha: float, seed: int) -> None:
        """Adds a trainable adapter to the transformer, which at first changes nothing."""

    def save_weights(self, folder: Path, mode: str) -> None:
        """Writes the adapter (``lora``) or the transformer (``full``) in diffusers' format."""

    def load_weights(self, folder: Path, mode: str) -> None:
        """Reads what ``save_weights`` wrote."""


__all__ = [
    "Backbone",
    "Conditioning",
    "Coupling",
    "Errors",
    "Eval",
    "Field",
    "LossOutput",
    "Method",
    "MethodConfig",
    "Pairs",
    "Strict",
]
