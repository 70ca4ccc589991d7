"""The training loop on a miniature: golden losses, laws of the first step, interruptions, and what is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pnapo_bench import registry, trainer
from pnapo_bench.backbones.tiny import Tiny
from pnapo_bench.compute import count_flops
from pnapo_bench.config import Train
from pnapo_bench.contracts import Errors, LossOutput, Method, Pairs
from pnapo_bench.errors import TrainingStopped, UserError
from pnapo_bench.pairs import PairData
from pnapo_bench.trainer import Metrics

TRAINED = sorted(set(registry.TABLES["methods"]) - {"base"})
PREFERENCE = sorted(set(TRAINED) - {"sft", "sft-prior"})

Trains = Callable[..., Any]  # the fixture ``train``

# Losses of five steps: batch 4, lr 1e-3 without warm-up, seed 0. A change of the mathematics, the stream, the noise or
# the optimiser changes them; a change of code alone does not. Where there is a beta it is 20, because 2000 would
# enlarge the rounding of errors, which differs from machine to machine, to 1e-4.
GOLDEN = {
    "diffusion-dpo": [0.6931472, 0.7861203, 0.3382659, 0.09434786, 0.03743596],
    "diffusion-dpo-independent": [0.6931472, 0.5142358, 0.1602045, 0.6364999, 0.8770611],
    "dpo-dynamic-beta": [0.6931472, 0.7361816, 0.4070222, 0.208453, 0.240163],
    "ipo": [1.0, 1.427786, 0.8680433, 2.300691, 0.7865878],
    "pnapo": [0.6931472, 1.087646, 0.363859, 0.3030993, 0.1672647],
    "pnapo-fixed-beta": [0.6931472, 1.308139, 0.2803064, 0.2922156, 0.01448464],
    "pnapo-permuted": [0.6931472, 0.7181249, 0.4211737, 0.1743384, 0.09411849],
    "sft": [2.441122, 2.272448, 1.970634, 2.259588, 1.962604],
    "sft-prior": [2.232642, 2.199294, 2.029946, 2.100392, 1.806202],
}


class Killed(Exception):
    """Stands for a process that dies."""


def from_progress(at: float, happens: Callable[[], Tensor]) -> Callable[[Method], Method]:
    """A wrapper of methods: from some progress on, something else happens than the loss."""

    def change(method: Method) -> Method:
        class Changed(type(method)):  # type: ignore[misc]
            def loss(self, errors: Errors, pairs: Pairs, progress: float) -> LossOutput:
                output: LossOutput = super().loss(errors, pairs, progress)
                return output if progress < at else LossOutput(output.loss * happens())

        changed: Method = Changed(method.config)
        return changed

    return change


def die() -> Tensor:
    raise Killed


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoint(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Steps made and parameters."""
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith("parameter.")]
        parameters = {key.removeprefix("parameter."): file.get_tensor(key) for key in keys}
        return int(file.metadata()["step"]), parameters


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", TRAINED)
def test_golden_losses(name: str, train: Trains) -> None:
    rows = train(name, method={"beta": 20} if name in PREFERENCE else {}).rows
    assert [row["loss"] for row in rows] == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize("name", PREFERENCE)
def test_the_first_loss_is_known_exactly(name: str, train: Trains) -> None:
    (first,) = train(name, steps=1).rows
    assert first["margin"] == 0
    assert first["winner_drift"] == first["loser_drift"] == 1
    # logistic: log 2 in float32; ipo: (0 - target)^2 = 1
    assert first["loss"] == (1.0 if name == "ipo" else torch.tensor(2.0).log().item())


def test_sft_knows_neither_loser_nor_reference(train: Trains) -> None:
    (row,) = train("sft", steps=1).rows
    assert row["loss"] == row["winner_error"]
    assert not {"loser_error", "winner_error_ref", "margin", "accuracy", "winner_drift"} & row.keys()


def test_training_learns_the_preference(train: Trains) -> None:
    rows = train("pnapo-fixed-beta", steps=6, batch=8).rows
    assert rows[-1]["margin"] < 0
    assert rows[-1]["loss"] < math.log(2)
    assert rows[-1]["accuracy"] > 0.5
    # what a row says agrees with itself: D = (e_w - e_w_ref) - (e_l - e_l_ref)
    for row in rows:
        winner, loser = (row[f"{side}_error"] - row[f"{side}_error_ref"] for side in ("winner", "loser"))
        assert row["margin"] == pytest.approx(winner - loser, abs=1e-6)
        assert row["winner_drift"] == pytest.approx(row["winner_error"] / row["winner_error_ref"])


def test_all_methods_see_the_same_pairs_at_the_same_times(train: Trains) -> None:
    fixed, dynamic = (train(name, name, steps=3).rows for name in ("pnapo-fixed-beta", "pnapo"))
    for one, other in zip(fixed, dynamic, strict=True):
        assert one["winner_error_ref"] == other["winner_error_ref"]
        assert one["loser_error_ref"] == other["loser_error_ref"]
    shared, independent = (train(name, name, steps=3).rows for name in ("diffusion-dpo", "diffusion-dpo-independent"))
    for one, other in zip(shared, independent, strict=True):
        assert one["winner_error_ref"] == other["winner_error_ref"]  # the losers alone have other noises
        assert one["loser_error_ref"] != other["loser_error_ref"]


def test_the_beta_of_each_step_is_logged(train: Trains) -> None:
    # with 8 pairs in a batch of 8, every step sees the gaps 0.1 ... 0.8: mean of tanh(5 gap) = 0.9062567
    confidence = sum(math.tanh(0.5 * k) for k in range(1, 9)) / 8
    rows = train("pnapo", steps=6, batch=8).rows
    decay = [1, 1, 1, 0.75, 0.5, 0.5]  # progress 0, 1/6, 1/3, 1/2, 2/3, 5/6
    assert [row["beta"] for row in rows] == pytest.approx([2000 * confidence * g for g in decay], rel=1e-5)


@pytest.mark.parametrize(("warmup", "expected"), [(4, [0.25, 0.5, 0.75, 1.0, 1.0]), (1, [1.0] * 5), (0, [1.0] * 5)])
def test_learning_rate_warms_up_and_stays(warmup: int, expected: list[float]) -> None:
    config = Train(lr=1.0, warmup=warmup)
    assert [trainer.learning_rate(step, config) for step in range(5)] == expected


@pytest.mark.parametrize("name", ["pnapo", "sft"])
def test_micro_batches_change_nothing_but_memory(name: str, train: Trains) -> None:
    whole, *others = (train(name, str(micro), lr=1e-5, steps=3, micro_batch=micro).rows for micro in (None, 1, 3))
    for other in others:
        for one, two in zip(whole, other, strict=True):
            assert one.keys() == two.keys()
            for key in one.keys() - {"accuracy"}:
                # beta / 2 = 1000 enlarges the rounding of errors, 1e-7, to 1e-4 in loss and gradient
                rough = name == "pnapo" and key in ("loss", "grad_norm")
                assert one[key] == pytest.approx(two[key], rel=2e-3 if rough else 1e-5, abs=1e-6), key


def test_flops_of_a_step_are_thrice_its_forward_pass(train: Trains, new_miniature: Callable[[], Tiny]) -> None:
    backbone = new_miniature()
    conditioning = backbone.encode_prompts(["a photo of a star"] * 8)
    x, t = torch.zeros(8, 4, 6, 6), torch.full((8,), 0.5)
    forward = count_flops(lambda: backbone.velocity(x, t, conditioning))  # 4 winners and 4 losers
    trained = train("pnapo", steps=3)
    # backward costs two forwards, but for the gradient of inputs that need none
    assert 2.8 * forward < trained.rows[0]["flops"] <= 3 * forward
    assert trained.summary.flops == trained.rows[-1]["flops"] == pytest.approx(3 * trained.rows[0]["flops"])


# ---------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_killed_and_resumed_equals_uninterrupted(mode: str, train: Trains, tmp_path: Path) -> None:
    straight = train("pnapo", "straight", mode=mode, lora_rank=4)
    with pytest.raises(Killed):
        train("pnapo", "killed", change=from_progress(0.6, die), mode=mode, lora_rank=4)
    assert checkpoint(tmp_path / "killed")[0] == 2  # step 3 of 5 died, its predecessor's checkpoint is at 2
    resumed = train("pnapo", "killed", mode=mode, lora_rank=4)
    assert resumed.rows == straight.rows
    assert equal(resumed.weights, straight.weights)
    assert resumed.summary.flops == straight.summary.flops


def test_training_that_was_complete_is_not_repeated(train: Trains, tmp_path: Path) -> None:
    straight = train("pnapo")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = train("pnapo", change=from_progress(0.0, die))  # killed while evaluating, say
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert equal(again.weights, straight.weights)
    assert again.summary == straight.summary  # its cost too


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(number: float, train: Trains, tmp_path: Path) -> None:
    straight = train("pnapo", "straight")
    with pytest.raises(TrainingStopped, match=r"^step 3: loss (nan|inf).*checkpoint\.safetensors.*smaller train\.lr"):
        train("pnapo", "stopped", change=from_progress(0.6, lambda: torch.tensor(number)))
    step, parameters = checkpoint(tmp_path / "stopped")
    assert step == 3  # though checkpoints were due at 2 and 4
    assert all(value.isfinite().all() for value in parameters.values())
    resumed = train("pnapo", "stopped")
    assert resumed.rows == straight.rows
    assert equal(resumed.weights, straight.weights)


def test_a_damaged_checkpoint_is_named(train: Trains, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train("sft", change=from_progress(0.6, die))
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors cannot be read .* delete it"):
        train("sft")


# ---------------------------------------------------------------------------------------------- guards


def test_the_reference_of_another_model_is_refused(train: Trains) -> None:
    with pytest.raises(UserError, match="step 0: expected policy and reference to agree"):
        train("pnapo", known=torch.full((20, 2), 2.0) + torch.tensor([0.0, 0.1]))


def test_a_margin_that_cancels_is_no_agreement() -> None:
    method = registry.get("methods", "pnapo")(None)
    zero = torch.zeros(2)
    trainer.check_start(method, Errors(zero, zero, zero, zero), zero)
    with pytest.raises(UserError, match="another model"):
        trainer.check_start(method, Errors(zero, zero, zero, zero + 1e-6), zero)
    with pytest.raises(UserError, match="another model"):  # both sides are off by the same
        trainer.check_start(method, Errors(zero, zero, zero + 1, zero + 1), zero)


def drifting(folder: Path, *drifts: float) -> Metrics:
    metrics = Metrics(folder / "metrics.jsonl", 0, drift_limit=1.5)
    for step, drift in enumerate(drifts):
        metrics.add({"step": step, "loss": 0.5, "winner_drift": drift, "seconds": step + 1.0, "flops": 3.0 * step})
    return metrics


def test_the_drift_alarm_is_raised_once_by_a_window_above_the_limit(tmp_path: Path) -> None:
    metrics = drifting(tmp_path, *[2.0] * 19)
    assert not metrics.alarm_is_new()  # 19 rows are no window of 20
    assert metrics.alarms() == []
    metrics.add({"step": 19, "winner_drift": 2.0})
    assert metrics.alarm_is_new()
    metrics.add({"step": 20, "winner_drift": 2.0})
    assert not metrics.alarm_is_new()
    (alarm,) = metrics.alarms()
    assert alarm.startswith("step 19: the winners' error is above 1.5 times")


def test_single_steps_raise_no_drift_alarm(tmp_path: Path) -> None:
    # one step of 5 among nineteen of 1: mean 24 / 20 = 1.2
    assert drifting(tmp_path, *[1.0] * 10, 5.0, *[1.0] * 29).alarms() == []
    # three: mean (17 + 15) / 20 = 1.6
    assert len(drifting(tmp_path, *[1.0] * 17, 5.0, 5.0, 5.0).alarms()) == 1


def test_a_resumed_run_does_not_repeat_its_alarm(tmp_path: Path) -> None:
    metrics = drifting(tmp_path, *[2.0] * 25)
    metrics.flush()
    resumed = Metrics(tmp_path / "metrics.jsonl", 22, drift_limit=1.5)
    assert len(resumed.rows) == 22  # rows after the checkpoint are dropped
    assert not resumed.alarm_is_new()
    assert len(resumed.alarms()) == 1


def test_the_summary_is_of_the_last_tenth(tmp_path: Path) -> None:
    summary = drifting(tmp_path, *[1.0] * 27, 1.0, 2.0, 3.0).summary()
    assert summary.winner_drift == 2.0  # of the last three of thirty
    assert (summary.steps, summary.seconds, summary.flops) == (30, 30.0, 87.0)
    assert summary.accuracy is None


# ---------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_saved_weights_give_the_same_velocities(
    mode: str, train: Trains, new_miniature: Callable[[], Tiny], miniature_pairs: PairData, tmp_path: Path
) -> None:
    trained = train("pnapo", mode=mode, lora_rank=4, lora_alpha=12)  # a scale other than 1 must travel too
    fresh, loaded = new_miniature(), new_miniature()
    loaded.load_weights(tmp_path / "run" / "weights", mode)
    conditioning = fresh.encode_prompts(miniature_pairs.prompts)
    with torch.no_grad():
        before, wanted, found = (
            backbone.velocity(miniature_pairs.winner, torch.full((8,), 0.5), conditioning)
            for backbone in (fresh, trained.backbone, loaded)
        )
    assert torch.equal(found, wanted)
    assert (found - before).abs().max() > 1e-3  # and training changed them


def test_full_training_changes_every_kind_of_weight(train: Trains, new_miniature: Callable[[], Tiny]) -> None:
    before, after = new_miniature().transformer.state_dict(), train("sft", steps=2).weights
    assert before.keys() == after.keys()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged <= {"pos_embed.pos_embed"}  # a buffer


def test_lora_changes_the_adapter_alone(train: Trains, new_miniature: Callable[[], Tiny]) -> None:
    before, after = new_miniature().transformer.state_dict(), train("sft", steps=2, mode="lora", lora_rank=4).weights
    adapter = {name for name in after if ".lora_" in name}
    base = {name.replace(".base_layer.", "."): value for name, value in after.items() if name not in adapter}
    assert equal(base, dict(before))
    # six blocks of 8 projections with A and B each; the last block has no add_out
    assert len(adapter) == 2 * (6 * 8 - 1)
    assert all(after[name].shape[0 if ".lora_A." in name else 1] == 4 for name in adapter)


def test_lora_begins_as_the_model_itself_and_depends_on_the_seed(new_miniature: Callable[[], Tiny]) -> None:
    first, same, other = (new_miniature() for _ in range(3))
    config = Train(mode="lora", lora_rank=4)
    a, b, c = (trainer.prepare_parameters(m, config, seed) for m, seed in ((first, 0), (same, 0), (other, 1)))
    assert all(value.dtype == torch.float32 for value in a.values())
    assert equal(dict(a), dict(b))
    assert not equal(dict(a), dict(c))
    assert all((value == 0).all() for name, value in a.items() if ".lora_B." in name)
