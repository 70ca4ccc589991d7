"""Supervised fine-tuning on the winners: the flow-matching loss itself, with a fresh noise at every visit."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling, Errors, LossOutput, Method, MethodConfig, Pairs


class SFT(Method):
    """loss = e_w (Liu et al. 2023, arXiv 2209.03003, equation 1). It sees neither loser nor reference."""

    class Config(MethodConfig):
        coupling: Coupling = "independent"

    name = "sft"
    source = "Liu et al. 2023, arXiv 2209.03003, eq. 1"
    needs_loser = False
    needs_reference = False

    def loss(self, errors: Errors, pairs: Pairs, progress: float) -> LossOutput:
        return LossOutput(errors.winner)
