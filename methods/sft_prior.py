"""SFT on the line from each winner to its recorded noise: what noise tracking gives without preferences."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling, MethodConfig

from .sft import SFT


class SFTPrior(SFT):
    """As ``sft``, but x_t uses the recorded prior noise (the second stage of Liu et al. 2023, their "reflow")."""

    class Config(MethodConfig):
        coupling: Coupling = "prior"

    name = "sft-prior"
    source = "Liu et al. 2023, arXiv 2209.03003, section 2.2 (reflow)"
