"""The reference's errors, computed once and stored, are those that the trainer computes in its loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pnapo_bench import reference, store
from pnapo_bench.backbones.tiny import Tiny
from pnapo_bench.config import Train
from pnapo_bench.contracts import Coupling
from pnapo_bench.errors import UserError
from pnapo_bench.pairs import PairData
from pnapo_bench.stream import Stream, states

TRAIN = Train(steps=3, batch=4)


def build(root: Path, backbone: Tiny, data: PairData, coupling: Coupling = "prior", train: Train = TRAIN) -> Path:
    stream = Stream(0, len(data), train.times, coupling)
    return reference.build(root, backbone, data, backbone.encode_prompts(data.prompts), stream, train)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pnapo", {}),  # coupling prior
        ("diffusion-dpo", {}),  # shared
        ("diffusion-dpo-independent", {}),  # independent
        ("pnapo-permuted", {}),  # permuted
        ("pnapo", {"micro_batch": 3, "times": "logit-normal"}),
        ("pnapo", {"mode": "lora", "lora_rank": 4}),
    ],
)
def test_training_with_stored_errors_equals_training_with_live_ones(
    name: str, settings: dict[str, Any], train: Callable[..., Any]
) -> None:
    live = train(name, "live", steps=4, **settings)
    stored = train(name, "stored", steps=4, cached=True, **settings)
    assert stored.rows == live.rows
    assert all(torch.equal(stored.weights[key], live.weights[key]) for key in live.weights)


def test_errors_lie_in_the_order_of_the_stream(
    new_miniature: Callable[[], Tiny], miniature_pairs: PairData, tmp_path: Path
) -> None:
    backbone = new_miniature()
    errors = reference.load(build(tmp_path, backbone, miniature_pairs))
    assert errors.shape == (12, 2)
    stream = Stream(0, 8, "uniform", "prior")
    embeddings = backbone.encode_prompts(miniature_pairs.prompts)
    for position in (0, 5, 11):
        with torch.no_grad():
            asked = states(stream, stream.visits(position, 1), miniature_pairs, embeddings, True, backbone.device)
            torch.testing.assert_close(errors[position], asked.errors(backbone))


def test_errors_are_computed_once_for_all_that_share_them(
    new_miniature: Callable[[], Tiny], miniature_pairs: PairData, tmp_path: Path
) -> None:
    backbone = new_miniature()
    first = build(tmp_path, backbone, miniature_pairs)
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    # what a run does with its own model is no concern of the reference's
    assert build(tmp_path, backbone, miniature_pairs, train=Train(steps=3, batch=4, lr=1.0, mode="lora")) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    others = [
        build(tmp_path, backbone, miniature_pairs, "shared"),
        build(tmp_path, backbone, miniature_pairs, train=Train(steps=2, batch=4)),
        build(tmp_path, backbone, miniature_pairs, train=Train(steps=3, batch=2)),
        build(tmp_path, backbone, miniature_pairs, train=Train(steps=3, batch=4, micro_batch=2)),
        build(tmp_path, backbone, miniature_pairs, train=Train(steps=3, batch=4, times="logit-normal")),
    ]
    assert len({first, *others}) == 6


def test_an_interrupted_computation_goes_on(
    new_miniature: Callable[[], Tiny], miniature_pairs: PairData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = new_miniature()
    whole = reference.load(build(tmp_path / "whole", backbone, miniature_pairs))
    monkeypatch.setattr(reference, "SHARD", 1)
    folder = build(tmp_path / "parts", backbone, miniature_pairs)
    kept = (folder / "errors-00000.safetensors").stat().st_mtime_ns
    for name in ("manifest.json", "cost-00002.json", "errors-00002.safetensors"):
        (folder / name).unlink()
    assert build(tmp_path / "parts", backbone, miniature_pairs) == folder
    assert torch.equal(reference.load(folder), whole)
    assert (folder / "errors-00000.safetensors").stat().st_mtime_ns == kept


def test_the_cost_is_a_forward_pass_for_each_image(
    new_miniature: Callable[[], Tiny], miniature_pairs: PairData, tmp_path: Path
) -> None:
    def flops(train: Train) -> float:
        folder = build(tmp_path, new_miniature(), miniature_pairs, train=train)
        return float(store.manifest(folder, "reference")["cost"]["flops"])

    one = flops(Train(steps=1, batch=1))
    assert one > 1e6
    assert flops(TRAIN) == pytest.approx(12 * one)  # 3 steps of 4 pairs


def test_altered_errors_are_not_used(
    new_miniature: Callable[[], Tiny], miniature_pairs: PairData, tmp_path: Path
) -> None:
    folder = build(tmp_path, new_miniature(), miniature_pairs)
    path = folder / "errors-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"errors-00000\.safetensors is corrupted"):
        reference.load(folder)
