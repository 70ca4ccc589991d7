"""What several tests share: pairs of twelve prompts on disk, and a miniature that no published weight can change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from pnapo_bench import pairs, reference, registry, trainer
from pnapo_bench.backbones.tiny import Tiny, new_modules
from pnapo_bench.config import Data, Sampler, Train
from pnapo_bench.noise import prior_noise, seed_of
from pnapo_bench.pairs import PairData
from pnapo_bench.prompts import training_prompts
from pnapo_bench.stream import Stream


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """The embedded backbone, for reading only."""
    return Tiny("cpu")


@pytest.fixture(scope="session")
def data_config() -> Data:
    """Twelve prompts, scored by what tells any two pictures apart, trained or not."""
    return Data(prompts=12, score="shapes_quality", sampler=Sampler(steps=3))


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, data_config: Data) -> Path:
    """``store/pairs/KEY`` with its image and score folders beside it, for reading only."""
    return pairs.build(tmp_path_factory.mktemp("shared") / "store", tiny, data_config)


@pytest.fixture(scope="session")
def new_miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Tiny]:
    """Makes backbones of the tiny architecture, all with the same random weights."""
    folder = tmp_path_factory.mktemp("miniature")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part, module in new_modules().items():
            module.save_pretrained(folder / part)
    return lambda: Tiny("cpu", folder)


@pytest.fixture(scope="session")
def miniature_pairs() -> PairData:
    """Eight pairs of random latents and noises, with gaps 0.1, 0.2, ... 0.8; no image was drawn."""

    def draw(what: str) -> Tensor:
        return prior_noise([seed_of(what, pair) for pair in range(8)], (4, 6, 6))

    return PairData(
        folder=Path("miniature"),
        revision="none",
        frame=pd.DataFrame({"prompt": [prompt.text for prompt in training_prompts(8, 0)]}),
        winner=draw("winner"),
        loser=draw("loser"),
        winner_noise=draw("winner's noise"),
        loser_noise=draw("loser's noise"),
        gap=torch.arange(1, 9) / 10,
        cost={},
    )


@dataclass(frozen=True)
class Trained:
    rows: list[dict[str, float]]  # of metrics.jsonl, without the seconds
    weights: dict[str, Tensor]
    summary: trainer.Summary
    backbone: Tiny


@pytest.fixture
def train(new_miniature: Callable[[], Tiny], miniature_pairs: PairData, tmp_path: Path) -> Callable[..., Trained]:
    """Trains a fresh miniature: ``train("pnapo", "folder", cached=True, steps=4)``."""

    def run(
        name: str,
        folder: str = "run",
        *,
        change: Callable[[Any], Any] = lambda same: same,
        known: Tensor | None = None,
        cached: bool = False,
        method: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Trained:
        """``method`` sets its config, ``change`` wraps it; reference errors are ``known``, or ``cached``, or live."""
        config = Train(**({"steps": 5, "batch": 4, "lr": 1e-3, "warmup": 0, "checkpoint_every": 2} | settings))
        method_class = registry.get("methods", name)
        trained = change(method_class(method_class.Config(**(method or {}))))
        backbone = new_miniature()
        embeddings = backbone.encode_prompts(miniature_pairs.prompts)
        stream = Stream(0, len(miniature_pairs), config.times, trained.config.coupling)
        if cached:
            place = tmp_path / "store"
            known = reference.load(reference.build(place, backbone, miniature_pairs, embeddings, stream, config))
        summary = trainer.train(
            backbone=backbone,
            method=trained,
            config=config,
            data=miniature_pairs,
            embeddings=embeddings,
            stream=stream,
            reference=known,
            folder=tmp_path / folder,
        )
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
        weights = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
        return Trained(rows, weights, summary, backbone)

    return run
