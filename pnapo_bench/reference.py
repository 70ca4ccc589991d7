"""The reference model's errors: two scalars a pair and visit, computed once for all runs that share a stream.

They are computed in the very forward passes that the trainer would make (same states, same batch, same precision), so
on a CPU they equal the in-loop ones bit for bit; a test says so.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic, store
from pnapo_bench.config import Train
from pnapo_bench.contracts import Backbone, Conditioning
from pnapo_bench.pairs import PairData
from pnapo_bench.progress import track
from pnapo_bench.stream import Stream, micro_batches, states

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 50  # steps


def build(
    root: Path, backbone: Backbone, data: PairData, embeddings: Conditioning, stream: Stream, train: Train
) -> Path:
    """The folder with the errors of all steps, computed if it is not complete."""
    import torch

    inputs = {
        "model": backbone.name,
        "revision": backbone.revision,
        "pairs": data.folder.name,
        "seed": stream.seed,
        "coupling": stream.coupling,
        "times": stream.times,
        "steps": train.steps,
        "batch": train.batch,
        "micro_batch": train.micro_batch,
        "device": backbone.device.type,
        "threads": torch.get_num_threads(),  # the last bits of a sum depend on how it is split
        "torch": torch.__version__,
    }
    return store.stage(
        root, "reference", inputs, lambda folder: _compute(folder, backbone, data, embeddings, stream, train)
    )


def _compute(
    folder: Path, backbone: Backbone, data: PairData, embeddings: Conditioning, stream: Stream, train: Train
) -> dict[str, Any]:
    import torch

    from pnapo_bench.compute import count_flops

    shards = [range(first, min(first + SHARD, train.steps)) for first in range(0, train.steps, SHARD)]
    forward = 0.0  # FLOPs of one image

    def make(index: int) -> float:
        nonlocal forward
        rows = []
        for step in shards[index]:
            for position, count in micro_batches(step * train.batch, train.batch, train.micro_batch, 0, 1):
                visits = stream.visits(position, count)
                asked = states(stream, visits, data, embeddings, True, backbone.device)
                forward = forward or count_flops(functools.partial(asked.errors, backbone)) / (2 * count)
                rows.append(asked.errors(backbone).reshape(2, count).T.cpu())
        atomic.write_tensors(folder / f"errors-{index:05}.safetensors", {"errors": torch.cat(rows)})
        advance(len(shards[index]))
        return 2 * len(shards[index]) * train.batch * forward

    with track("reference errors", train.steps) as advance, torch.no_grad():
        return {"cost": store.make_shards(folder, len(shards), make, whole=lambda index: advance(len(shards[index])))}


def load(folder: Path) -> Tensor:
    """Errors [steps * batch, 2] of winner and loser, in the order of the stream."""
    import torch
    from safetensors.torch import load_file

    files = store.manifest(folder, "reference")["files"]
    return torch.cat([load_file(store.checked(folder, name, files))["errors"] for name in sorted(files)])
