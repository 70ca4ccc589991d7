"""Diffusion-DPO with a fresh noise for each image: the coupling of the derivation, not of the published code."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling

from .diffusion_dpo import DiffusionDPO


class DiffusionDPOIndependent(DiffusionDPO):
    """As ``diffusion-dpo``, but winner and loser draw their own fresh noise; t stays common."""

    class Config(DiffusionDPO.Config):
        coupling: Coupling = "independent"

    name = "diffusion-dpo-independent"
    source = "Wallace et al. 2023, arXiv 2311.12908, eq. 13"
