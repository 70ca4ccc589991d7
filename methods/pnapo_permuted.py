"""The control of PNAPO: recorded noise too, fixed for the whole run too, but of another pair."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling

from .pnapo import PNAPO


class PNAPOPermuted(PNAPO):
    """As ``pnapo``, but every pair uses the noises of another pair: what is left without the match."""

    class Config(PNAPO.Config):
        coupling: Coupling = "permuted"

    name = "pnapo-permuted"
    source = "control of arXiv 2605.09433; asked for by its reviewers"
