"""Diffusion-DPO: logistic loss on the difference of denoising errors, one fresh noise for winner and loser."""

from __future__ import annotations

from pnapo_bench import flow
from pnapo_bench.contracts import Coupling, Errors, Field, LossOutput, Method, MethodConfig, Pairs


class DiffusionDPO(Method):
    """loss = -log sigmoid(-beta/2 D) (Wallace et al. 2023, arXiv 2311.12908, equation 14; errors are velocity errors).

    Winner and loser share one fresh noise and one t at every visit, as in the authors' code.
    """

    class Config(MethodConfig):
        coupling: Coupling = "shared"
        beta: float = Field(
            2000.0,
            gt=0,
            description="per-element mean errors; the authors use 5000 (SDXL) and 2000 (SD1.5)",
        )

    name = "diffusion-dpo"
    source = "Wallace et al. 2023, arXiv 2311.12908, eq. 14"

    def loss(self, errors: Errors, pairs: Pairs, progress: float) -> LossOutput:
        return LossOutput(flow.logistic_loss(errors.margin(), self.config.beta))
