"""The model as published, not trained: the row that everything else is compared to."""

from __future__ import annotations

from pnapo_bench.contracts import Method


class Base(Method):
    """No loss and no update."""

    name = "base"
    source = "the backbone's own weights"
    needs_loser = False
    needs_reference = False
    trains = False
