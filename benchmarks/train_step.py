"""Our training step against a plain loop, on the same model, data and machine: ``python benchmarks/train_step.py``.

The plain loop is what a first script does: at every step it encodes the prompts, runs a frozen copy of the model beside
the policy, then the same loss and update. Ours has prompt embeddings and reference errors from the store. Both run in
turns, so that a noisy machine slows both; the figure is the ratio of the medians of single steps.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pnapo_bench import config, environment, pairs, reference, registry, trainer
from pnapo_bench.contracts import Method, Pairs
from pnapo_bench.pairs import PairData
from pnapo_bench.run import load_backbone
from pnapo_bench.stream import Stream, split, states


def ours(method: Method, train: config.Train, data: PairData, stream: Stream, root: Path) -> tuple[list[float], float]:
    """Seconds of each step, by the trainer's own clock, and FLOPs of a step."""
    backbone = load_backbone("tiny")
    embeddings = backbone.encode_prompts(data.prompts)
    errors = reference.load(reference.build(root, backbone, data, embeddings, stream, train))
    with tempfile.TemporaryDirectory() as folder:
        summary = trainer.train(
            backbone=backbone,
            method=method,
            config=train,
            data=data,
            embeddings=embeddings,
            stream=stream,
            reference=errors,
            folder=Path(folder),
        )
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    clock = [row["seconds"] for row in rows]
    return [b - a for a, b in itertools.pairwise(clock)], summary.flops / summary.steps


def plain(method: Method, train: config.Train, data: PairData, stream: Stream) -> list[float]:
    """Seconds of each step of the plain loop."""
    backbone = load_backbone("tiny")
    frozen = copy.copy(backbone)
    frozen.transformer = copy.deepcopy(backbone.transformer)
    parameters = list(backbone.transformer.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)
    seconds = []
    for step in range(train.steps):
        start = time.perf_counter()
        visits = stream.visits(step * train.batch, train.batch)
        mine = subset(data, [pair for pair, _ in visits])
        local = [(row, visit) for row, (_, visit) in enumerate(visits)]
        asked = states(stream, local, mine, backbone.encode_prompts(mine.prompts), True, backbone.device)
        with torch.no_grad():
            known = asked.errors(frozen)
        errors = split(asked.errors(backbone), known, True)
        loss = method.loss(errors, Pairs(mine.gap, mine.prompts), step / train.steps).loss.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def subset(data: PairData, pairs: list[int]) -> PairData:
    """The pairs of one batch."""
    return dataclasses.replace(
        data,
        frame=data.frame.iloc[pairs],
        **{name: getattr(data, name)[pairs] for name in ("winner", "loser", "winner_noise", "loser_noise", "gap")},
    )


def matrix_rate(side: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a float32 matrix product, the best of some."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder with the store")
    parser.add_argument("--steps", type=int, default=10, help="of each block")
    parser.add_argument("--blocks", type=int, default=6, help="of each loop, in turns")
    arguments = parser.parse_args()
    resolved = config.resolve("pnapo", "tiny", 0, [f"train.steps={arguments.steps}"])
    method = registry.get("methods", "pnapo")(resolved.method_config)
    root = arguments.out / "store"
    data = pairs.load(pairs.build(root, load_backbone("tiny"), resolved.data))
    stream = Stream(0, len(data), resolved.train.times, "prior")
    fast: list[float] = []
    slow: list[float] = []
    rates: list[float] = []
    flops = 0.0
    for _ in range(arguments.blocks):
        seconds, flops = ours(method, resolved.train, data, stream, root)
        fast += seconds
        slow += plain(method, resolved.train, data, stream)
        rates.append(matrix_rate())
    step, other, rate = statistics.median(fast), statistics.median(slow), max(rates)
    machine = environment.hardware()
    print(f"{machine['cpu']}, {machine['threads']} threads, torch {torch.__version__}")
    print(f"batch {resolved.train.batch} pairs, {len(fast)} steps each, in turns")
    print(f"ours         {1000 * step:8.1f} ms a step (median)")
    print(f"plain loop   {1000 * other:8.1f} ms a step (median)")
    print(f"ratio        {other / step:8.2f}")
    print(f"matrix rate  {rate / 1e9:8.1f} GFLOP/s in float32; our step reaches {flops / step / rate:.0%} of it")


if __name__ == "__main__":
    main()
