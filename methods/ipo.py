"""IPO: a squared instead of a logistic loss, so that the margin aims at a fixed target instead of growing for ever."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling, Errors, Field, LossOutput, Method, MethodConfig, Pairs


class IPO(Method):
    """loss = (-beta/2 D - target)^2 (Azar et al. 2023, arXiv 2310.12036, equation 17, on Diffusion-DPO's margin).

    Differs from ``diffusion-dpo`` in the loss alone.
    """

    class Config(MethodConfig):
        coupling: Coupling = "shared"
        beta: float = Field(2000.0, gt=0, description="as for diffusion-dpo")
        target: float = Field(1.0, gt=0, description="where the logit should come to rest; 1 as in CaPO's comparison")

    name = "ipo"
    source = "Azar et al. 2023, arXiv 2310.12036, eq. 17"

    def loss(self, errors: Errors, pairs: Pairs, progress: float) -> LossOutput:
        return LossOutput((-0.5 * self.config.beta * errors.margin() - self.config.target).square())
