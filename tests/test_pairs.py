"""Noise-tracked pairs: the rules, what is stored and reused, and that nothing altered is ever used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pnapo_bench import evaluate, images, noise, pairs, registry, scoring, store
from pnapo_bench.backbones.tiny import Tiny
from pnapo_bench.config import Data, Evaluation, Sampler
from pnapo_bench.errors import UserError
from pnapo_bench.images import Images, Request
from pnapo_bench.prompts import Prompt, training_prompts


def snapshot(root: Path) -> dict[str, tuple[int, str]]:
    """Every file with its time and hash."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, store.file_hash(path)) for path in files}


def source_of(pairs_folder: Path) -> Path:
    manifest = store.manifest(pairs_folder, "pairs")
    return pairs_folder.parent.parent / "images" / str(manifest["inputs"]["images"])


@pytest.fixture
def copy(pairs_folder: Path, tmp_path: Path) -> Path:
    """The pairs folder in a store that a test may damage."""
    root = shutil.copytree(pairs_folder.parent.parent, tmp_path / "store")
    return root / "pairs" / pairs_folder.name


def reseal(folder: Path) -> None:
    """Writes the present hashes into the manifest, as somebody with intent would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {name: store.file_hash(folder / name) for name in manifest["files"]}
    path.write_text(json.dumps(manifest))


def alter(path: Path, change: Callable[[pd.DataFrame], None]) -> None:
    frame = pd.read_parquet(path)
    change(frame)
    frame.to_parquet(path, index=False)


# ---------------------------------------------------------------------------------------------- rules


def scored(*values: list[float]) -> pd.DataFrame:
    """A row for each image: one list of scores for each prompt."""
    rows = [
        {"item": item, "noise": k, "prompt": f"prompt {item}", "group": "g", "value": value}
        for item, of_prompt in enumerate(values)
        for k, value in enumerate(of_prompt)
    ]
    frame = pd.DataFrame(rows)
    frame.insert(0, "image", range(len(frame)))
    frame["seed"] = 100 + frame["image"]
    frame["noise_sha256"] = [f"hash {image}" for image in frame["image"]]
    return frame


def test_two_takes_the_first_two_images_of_each_prompt() -> None:
    # images 0 1 2 | 3 4 5 | 6 7 8; the third is never looked at, the second prompt's first two are a tie
    found = pairs.sextuples(scored([1.0, 3.5, 9.0], [2.0, 2.0, 5.0], [0.75, 0.5, -1.0]), "two")
    assert found.to_dict("records") == [
        {
            "item": 0,
            "prompt": "prompt 0",
            "group": "g",
            "winner_image": 1,
            "winner_seed": 101,
            "winner_noise_sha256": "hash 1",
            "winner_score": 3.5,
            "loser_image": 0,
            "loser_seed": 100,
            "loser_noise_sha256": "hash 0",
            "loser_score": 1.0,
            "gap": 2.5,
        },
        {
            "item": 2,
            "prompt": "prompt 2",
            "group": "g",
            "winner_image": 6,
            "winner_seed": 106,
            "winner_noise_sha256": "hash 6",
            "winner_score": 0.75,
            "loser_image": 7,
            "loser_seed": 107,
            "loser_noise_sha256": "hash 7",
            "loser_score": 0.5,
            "gap": 0.25,
        },
    ]


def test_best_worst_takes_the_extremes_of_all() -> None:
    found = pairs.sextuples(scored([1.0, 3.5, 9.0], [2.0, 2.0, 5.0], [4.0, 4.0, 4.0], [0.5, -1.0, 0.75]), "best-worst")
    assert found["item"].tolist() == [0, 1, 3]  # the third prompt is a tie
    assert found["winner_image"].tolist() == [2, 5, 11]
    assert found["loser_image"].tolist() == [0, 3, 10]  # of two equal losers the first
    assert found["gap"].tolist() == [8.0, 3.0, 1.75]


def test_pairs_need_a_score_for_every_image_and_one_winner_at_least(pairs_folder: Path, tmp_path: Path) -> None:
    source = Images(source_of(pairs_folder))
    flat = pd.DataFrame({"image": source.frame()["image"], "value": 0.5})
    with pytest.raises(UserError, match="all scores are equal"):
        pairs._pair(tmp_path, source, flat, "two")
    flat.loc[[3, 5], "value"] = np.nan
    with pytest.raises(UserError, match=r"2 of 24 images .* have no score"):
        pairs._pair(tmp_path, source, flat, "two")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- what is stored


def test_a_pair_is_a_sextuple_that_belongs_together(pairs_folder: Path) -> None:
    data = pairs.load(pairs_folder)
    source = Images(source_of(pairs_folder))
    frame, latents = source.frame(), source.latents()
    assert 0 < len(data) <= 12
    assert latents.shape == (24, 4, 6, 6)
    assert (data.gap > 0).all()
    scores = scoring.read(
        pairs_folder.parent.parent / "scores" / store.manifest(pairs_folder, "pairs")["inputs"]["scores"]
    )
    values = scores.set_index("image")["value"]
    for row, pair in data.frame.iterrows():
        k = int(str(row))
        first, second = 2 * pair["item"], 2 * pair["item"] + 1  # images of one prompt lie side by side
        assert {pair["winner_image"], pair["loser_image"]} == {first, second}
        assert frame["prompt"][first] == frame["prompt"][second] == pair["prompt"]
        assert data.gap[k].item() == pytest.approx(values[pair["winner_image"]] - values[pair["loser_image"]])
        for side, latent, prior in (
            ("winner", data.winner[k], data.winner_noise[k]),
            ("loser", data.loser[k], data.loser_noise[k]),
        ):
            image = int(pair[f"{side}_image"])
            assert torch.equal(latent, latents[image])
            assert noise.fingerprint(prior) == pair[f"{side}_noise_sha256"] == frame["noise_sha256"][image]
            seed = noise.seed_of("training image", 0, int(pair["item"]), image % 2)
            assert torch.equal(prior, noise.prior_noise([seed], (4, 6, 6))[0])


def test_building_again_changes_nothing_on_disk(pairs_folder: Path, tiny: Tiny, data_config: Data) -> None:
    root = pairs_folder.parent.parent
    before = snapshot(root)
    assert pairs.build(root, tiny, data_config) == pairs_folder
    assert snapshot(root) == before


class Brightness:
    """A reward of somebody else."""

    name, version = "brightness", "1"

    def load(self, device: str) -> None:
        """Nothing to load."""

    def score(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.flatten(1).mean(1)


def test_another_rule_or_score_generates_no_image(
    copy: Path, tiny: Tiny, data_config: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.TABLES["evals"], "brightness", f"{__name__}:Brightness")
    root = copy.parent.parent
    before = snapshot(root / "images")
    by_rule = pairs.build(root, tiny, data_config.model_copy(update={"rule": "best-worst"}))
    assert len(list((root / "scores").iterdir())) == 1  # nor a score
    by_score = pairs.build(root, tiny, data_config.model_copy(update={"score": "brightness"}))
    assert len({copy, by_rule, by_score}) == 3
    assert snapshot(root / "images") == before
    mean = [images.from_png(png).mean().item() for png in Images(source_of(copy)).frame(pixels=True)["png"]]
    for _, pair in pairs.load(by_score).frame.iterrows():
        gap = mean[pair["winner_image"]] - mean[pair["loser_image"]]
        assert pair["gap"] == pytest.approx(gap, abs=1e-6)


def test_what_decides_the_pictures_decides_the_folder(tiny: Tiny, data_config: Data) -> None:
    def key(purpose: str = "training image", weights: str = "base", **update: Any) -> str:
        data = data_config.model_copy(update=update)
        prompts = training_prompts(data.prompts, data.seed)
        request = Request(purpose, prompts, data.images_per_prompt, data.seed, data.sampler)
        return store.key_of(images.inputs_of(tiny, weights, request))

    keys = [
        key(),
        key(prompts=13),
        key(images_per_prompt=3),
        key(seed=1),
        key(sampler=Sampler(steps=4)),
        key(sampler=Sampler(steps=3, guidance=2.0)),
        key("eval image"),
        key(weights="trained"),
    ]
    assert len(set(keys)) == len(keys)
    assert key(score="shapes_reward", rule="best-worst") == keys[0]


def test_the_noise_of_an_image_depends_on_its_place_alone() -> None:
    def seeds(count: int, noises: int, purpose: str = "training image", seed: int = 0) -> dict[tuple[int, int], int]:
        request = Request(purpose, [Prompt(f"prompt {i}", "g") for i in range(count)], noises, seed, Sampler())
        return {(row["item"], row["noise"]): row["seed"] for row in request.rows()}

    small, large = seeds(3, 2), seeds(50, 4)
    assert len(set(large.values())) == 200
    assert all(large[place] == seed for place, seed in small.items())
    for other in (seeds(50, 4, "eval image"), seeds(50, 4, seed=1)):
        assert not set(other.values()) & set(large.values())


def test_a_png_keeps_every_eighth_bit() -> None:
    picture = torch.arange(3 * 4 * 5).reshape(3, 4, 5) / 255
    assert torch.equal(images.from_png(images.to_png(picture)), picture)


def test_inspect_counts(pairs_folder: Path) -> None:
    found = pairs.inspect(pairs_folder)
    assert found["images"] == 24
    assert found["pairs"] + found["ties left out"] == 12
    assert sum(count for name, count in found.items() if name.startswith("pairs of ")) == found["pairs"]
    assert found["winner's mean score"] > found["loser's mean score"]


# ---------------------------------------------------------------------------------------------- interruptions


def test_an_interrupted_generation_continues_to_the_same_bytes(
    tiny: Tiny, data_config: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "SHARD", 8)
    folder = source_of(pairs.build(tmp_path, tiny, data_config))
    before = snapshot(folder)
    assert len(list(folder.glob("latents-*"))) == 3  # 24 images
    for name in ("manifest.json", "cost-00002.json"):
        (folder / name).unlink()
    (folder / "latents-00002.safetensors").write_bytes(b"half a file")
    pairs.build(tmp_path, tiny, data_config)
    after = snapshot(folder)
    for name in ("latents-00002.safetensors", "images-00002.parquet"):
        assert after[name][1] == before[name][1]
    for name in ("latents-00000.safetensors", "images-00001.parquet", "cost-00001.json"):
        assert after[name] == before[name]  # not even touched


def test_shards_change_nothing(
    pairs_folder: Path, tiny: Tiny, data_config: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "SHARD", 10)
    whole, parts = Images(source_of(pairs_folder)), Images(source_of(pairs.build(tmp_path, tiny, data_config)))
    assert parts.manifest["shards"] == 3
    assert parts.frame()["noise_sha256"].equals(whole.frame()["noise_sha256"])
    torch.testing.assert_close(parts.latents(), whole.latents(), atol=1e-4, rtol=0)
    one = load_file(parts.folder / "latents-00001.safetensors")["latents"]
    assert torch.equal(one, parts.latents()[10:20])
    row = parts.frame().iloc[12]
    assert (row["image"], row["latents"], row["row"]) == (12, "latents-00001.safetensors", 2)


# ---------------------------------------------------------------------------------------------- verification


def test_verify_regenerates_bit_for_bit(pairs_folder: Path, tiny: Tiny) -> None:
    count = len(pairs.load(pairs_folder))
    assert pairs.verify(pairs_folder, None, 3) == {"pairs": count, "noises": 2 * count}
    assert pairs.verify(pairs_folder, tiny, 3) == {
        "pairs": count,
        "noises": 2 * count,
        "regenerated": 3,
        "regenerated, equal in every bit": 3,
    }


def test_verify_with_guidance(tiny: Tiny, tmp_path: Path) -> None:
    data = Data(prompts=6, score="shapes_quality", sampler=Sampler(steps=3, guidance=2.0))
    assert pairs.verify(pairs.build(tmp_path, tiny, data), tiny, 2)["regenerated, equal in every bit"] == 2


def test_verify_refuses_another_model(pairs_folder: Path, new_miniature: Callable[[], Tiny]) -> None:
    with pytest.raises(UserError, match=r"was made by tiny .* the model here is"):
        pairs.verify(pairs_folder, new_miniature(), 3)


def test_verify_sees_latents_that_the_noise_does_not_give(copy: Path, tiny: Tiny) -> None:
    folder = source_of(copy)
    path = folder / "latents-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-24 * 4 * 36 * 4 + 3] ^= 0x40  # the exponent of the first of 24 x 4 x 36 float32 at the end of the file
    path.write_bytes(content)
    reseal(folder)
    with pytest.raises(UserError, match="generated anew from its recorded noise differs"):
        pairs.verify(copy, tiny, 3)


def test_a_flipped_byte_of_a_latent_is_named(copy: Path) -> None:
    path = source_of(copy) / "latents-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"latents-00000\.safetensors is corrupted"):
        pairs.verify(copy, None, 0)


def test_an_altered_noise_hash_is_named(copy: Path) -> None:
    folder = source_of(copy)
    row = 4
    image = int(pd.read_parquet(copy / "pairs.parquet")["winner_image"][row])

    def forge(frame: pd.DataFrame) -> None:
        frame.loc[image, "noise_sha256"] = "0" * 64

    alter(folder / "images-00000.parquet", forge)
    reseal(folder)
    with pytest.raises(UserError, match=rf"noise hash of the winner in row {row} is not that of image {image}"):
        pairs.load(copy)

    def forge_too(frame: pd.DataFrame) -> None:
        frame.loc[row, "winner_noise_sha256"] = "0" * 64

    alter(copy / "pairs.parquet", forge_too)  # now both records agree, and the noise itself speaks
    reseal(copy)
    with pytest.raises(UserError, match=rf"image {image} of .*another hash than the one on record \(000000000000"):
        pairs.load(copy)


def test_an_altered_seed_is_named(copy: Path) -> None:
    folder = source_of(copy)
    image = int(pd.read_parquet(copy / "pairs.parquet")["loser_image"][2])

    def forge(frame: pd.DataFrame) -> None:
        frame.loc[image, "seed"] = 12345

    alter(folder / "images-00000.parquet", forge)
    reseal(folder)
    with pytest.raises(UserError, match=rf"image {image} of .*drawn from seed 12345"):
        pairs.load(copy)


def test_altered_pairs_are_named(copy: Path) -> None:
    def swap(frame: pd.DataFrame) -> None:
        frame.loc[0, ["winner_image", "loser_image"]] = frame.loc[0, ["loser_image", "winner_image"]].to_numpy()

    alter(copy / "pairs.parquet", swap)
    with pytest.raises(UserError, match=r"pairs\.parquet is corrupted"):
        pairs.load(copy)
    reseal(copy)
    with pytest.raises(UserError, match="noise hash of the winner in row 0"):
        pairs.load(copy)


@pytest.mark.parametrize("kind", ["images", "scores"])
def test_pairs_without_what_they_are_made_of(kind: str, copy: Path) -> None:
    shutil.rmtree(copy.parent.parent / kind)
    with pytest.raises(UserError, match=f"expected a complete {kind} folder"):
        pairs.load(copy)


def test_a_folder_of_another_kind_is_no_pairs_folder(pairs_folder: Path) -> None:
    with pytest.raises(UserError, match=r"expected a pairs folder, .* is one of 'images'"):
        pairs.load(source_of(pairs_folder))


def test_evaluation_pictures_make_no_pairs(tiny: Tiny, tmp_path: Path) -> None:
    asked = evaluate.request(Evaluation(prompts=6, noises=2, sampler=Sampler(steps=2)))
    folder = images.build(tmp_path, tiny, "base", asked, "evaluating")
    with pytest.raises(UserError, match="holds pictures for evaluation"):
        pairs.build_from(tmp_path, folder, "shapes_quality", "two", "cpu")
