"""The pretraining of the embedded model, in the small: it continues where it was killed, and exports what loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pnapo_bench.backbones.tiny import WEIGHTS, Tiny, weights_hash
from pnapo_bench.world import pretrain
from pnapo_bench.world.pretrain import Recipe

SHORT = Recipe(
    vae_steps=4, vae_batch=6, pictures=500, flow_steps=4, flow_batch=6, warmup=1, checkpoint_every=2
)  # fmt: skip


@pytest.fixture(autouse=True)
def _leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)


def flow_of(recipe: Recipe, out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    vae = pretrain.train_autoencoder(recipe, out)
    modules, log = pretrain.train_flow(recipe, pretrain.encode_corpus(recipe, vae, out), out)
    pretrain.export({"vae": vae, **modules}, out / "weights")
    return modules["transformer"].state_dict(), log


@pytest.mark.slow
def test_killed_pretraining_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, log = flow_of(SHORT, tmp_path / "whole")
    cosine, calls = pretrain.cosine, 0

    def dies_in_the_third_step_of_each_stage(step: int, steps: int, warmup: int) -> float:
        nonlocal calls
        calls += step == 3
        if step == 3 and calls in (1, 3):  # 2 is the repetition of the first stage; the flow asks twice a step
            raise KeyboardInterrupt
        return cosine(step, steps, warmup)

    monkeypatch.setattr(pretrain, "cosine", dies_in_the_third_step_of_each_stage)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            flow_of(SHORT, tmp_path / "killed")
    again, log_again = flow_of(SHORT, tmp_path / "killed")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [row["step"] for row in log] == [row["step"] for row in log_again] == [2, 4]
    assert weights_hash(tmp_path / "whole" / "weights") == weights_hash(tmp_path / "killed" / "weights")
    assert Tiny(weights=tmp_path / "whole" / "weights").revision == weights_hash(tmp_path / "whole" / "weights")


def test_another_recipe_does_not_continue_a_checkpoint(tmp_path: Path) -> None:
    pretrain.train_autoencoder(Recipe(vae_steps=1, vae_batch=2), tmp_path)
    with pytest.raises(SystemExit, match="another recipe"):
        pretrain.train_autoencoder(Recipe(vae_steps=2, vae_batch=2), tmp_path)


def test_shipped_weights_are_those_of_their_card() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert weights_hash(WEIGHTS) == card["sha256"]
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 10e6
    accuracy = card["accuracy"]["eval"]
    assert 0.45 <= accuracy["overall"] <= 0.70
    assert min(accuracy.values()) >= 0.20
