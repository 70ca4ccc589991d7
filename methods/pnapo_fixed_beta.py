"""PNAPO without its dynamic regularisation: the recorded prior noise and a constant beta."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling

from .diffusion_dpo import DiffusionDPO


class PNAPOFixedBeta(DiffusionDPO):
    """As ``diffusion-dpo``, but x_t uses each image's own recorded noise; as ``pnapo`` with f = g = 1."""

    class Config(DiffusionDPO.Config):
        coupling: Coupling = "prior"

    name = "pnapo-fixed-beta"
    source = "arXiv 2605.09433, ablation"
