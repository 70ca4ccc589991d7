"""PNAPO: DPO on the recorded prior noise of every image, with a beta that follows reward gap and training progress."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import model_validator

from pnapo_bench import flow
from pnapo_bench.contracts import Coupling, Errors, Field, LossOutput, Method, MethodConfig, Pairs


class PNAPO(Method):
    """loss = -log sigmoid(-beta(gap, n)/2 D) with x_t on the line from each image to its own recorded noise.

    beta(gap, n) = beta f(gap) g(n), f(gap) = 2 sigmoid(scale gap) - 1, and g falls from 1 to ``decay_to`` on a cosine
    between ``decay_start`` and ``decay_end`` ("Offline Preference Optimization for Rectified Flow with Noise-Tracked
    Pairs", arXiv 2605.09433). Differs from ``pnapo-fixed-beta`` in f and g.

    The paper leaves open: the unit of the gap inside f, decay_start and decay_end, and whether errors are summed or
    averaged (here: averaged, with the factor 1/2 of Diffusion-DPO).
    """

    class Config(MethodConfig):
        coupling: Coupling = "prior"
        beta: float = Field(2000.0, gt=0, description="paper: 2000 for FLUX, 5000 for SD3-M")
        gap_scale: float = Field(
            10.0,
            gt=0,
            description="open in the paper; 10 times a reward in [0, 1], as in SmPO by the same first author",
        )
        decay_start: float = Field(1 / 3, ge=0, le=1, description="open in the paper: progress n1/N")
        decay_end: float = Field(2 / 3, ge=0, le=1, description="open in the paper: progress n2/N")
        decay_to: float = Field(0.5, gt=0, le=1, description="paper: 1/2")

        @model_validator(mode="after")
        def _decay_ends_after_its_start(self) -> Self:
            if self.decay_start > self.decay_end:
                raise ValueError(f"decay_start {self.decay_start:g} is after decay_end {self.decay_end:g}")
            return self

    name = "pnapo"
    source = "arXiv 2605.09433 (ICML 2026)"

    def loss(self, errors: Errors, pairs: Pairs, progress: float) -> LossOutput:
        c = self.config
        confidence = 2 * torch.sigmoid(c.gap_scale * pairs.gap) - 1
        beta = c.beta * confidence * decay(progress, c.decay_start, c.decay_end, c.decay_to)
        return LossOutput(flow.logistic_loss(errors.margin(), beta), beta)


def decay(progress: float, start: float, end: float, to: float) -> float:
    """g(n): 1 before ``start``, ``to`` from ``end`` on, half a cosine between."""
    if progress < start:
        return 1.0
    if progress >= end:
        return to
    return to + (1 - to) * 0.5 * (1 + math.cos(math.pi * (progress - start) / (end - start)))
