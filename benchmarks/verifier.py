"""What the exact verifier gets right, and how fast it is: ``python benchmarks/verifier.py``."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from pnapo_bench import environment
from pnapo_bench.world import scenes
from pnapo_bench.world.render import SIDE, render
from pnapo_bench.world.verify import judge

COUNT, BATCH = 5000, 500


def main() -> None:
    rng = np.random.default_rng(1)
    families = list(scenes.all_scenes().values())
    described = [families[i % 6][rng.integers(len(families[i % 6]))] for i in range(COUNT)]
    wrong = [scenes.with_one_wrong_fact(scene, rng) for scene in described]
    pictures = render(described, rng)
    noise = torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    rates = []
    shares = []
    for images, captions in ((pictures, described), (pictures, wrong), (noise, described)):
        passed = 0
        for start in range(0, COUNT, BATCH):
            part = slice(start, start + BATCH)
            began = time.perf_counter()
            passed += sum(verdict.passed for verdict in judge(images[part], captions[part]))
            if images is pictures:
                rates.append(BATCH / (time.perf_counter() - began))
        shares.append(passed / COUNT)
    machine = environment.hardware()
    print(f"{machine['cpu']}, {machine['threads']} threads; {COUNT} scenes of all families, seed 1")
    for name, share in zip(("clean render", "one wrong fact", "noise"), shares, strict=True):
        print(f"{name:<15} passes {share:8.2%}")
    print(f"{statistics.median(rates):.0f} pictures/s (median of batches of {BATCH})")


if __name__ == "__main__":
    main()
