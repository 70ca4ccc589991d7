"""Diffusion-DPO with PNAPO's dynamic beta: the regularisation without the noise tracking."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling

from .pnapo import PNAPO


class DPODynamicBeta(PNAPO):
    """As ``pnapo``, but one fresh noise for winner and loser as in ``diffusion-dpo``."""

    class Config(PNAPO.Config):
        coupling: Coupling = "shared"

    name = "dpo-dynamic-beta"
    source = "arXiv 2605.09433, ablation"
