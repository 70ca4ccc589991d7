"""The model as published, not trained: the row that everything else is compared to."""

from __future__ import annotations

from pnapo_bench.contracts import Coupling, Method, MethodConfig


class Base(Method):
    """No loss and no update."""

    class Config(MethodConfig):
        coupling: Coupling = "prior"

    name = "base"
    source = "the backbone's own weights"
    needs_loser = False
    needs_reference = False
    trains = False
