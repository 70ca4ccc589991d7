"""What a run costs: counted FLOPs, seconds and peak memory, booked by stage."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What one stage took. A shared stage was paid for once for all runs that use its result."""

    seconds: float
    flops: float
    peak_bytes: int  # of the process until the stage was booked
    shared: bool


@dataclass
class Ledger:
    """Stage name -> cost."""

    stages: dict[str, Cost] = field(default_factory=dict)

    def book(self, name: str, seconds: float, flops: float, shared: bool) -> None:
        """Enters a stage; its time and FLOPs were measured where it was built."""
        self.stages[name] = Cost(seconds, flops, peak_memory(), shared)

    def as_dict(self) -> dict[str, Any]:
        return {name: asdict(cost) for name, cost in self.stages.items()}


def peak_memory() -> int:
    """Bytes: of the GPU where there is one in use, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def count_flops(work: Callable[[], object]) -> float:
    """FLOPs of what ``work`` computes, by torch's counter.

    Attention is forced into its plain form, because the counter knows no fused kernel of the CPU and would book 0.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
