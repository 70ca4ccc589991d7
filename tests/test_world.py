"""The embedded world: prompts, splits, pictures and the exact verifier."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from pnapo_bench.world import scenes
from pnapo_bench.world.render import BACKGROUND, PALETTE, SIDE, Objects, draw, render
from pnapo_bench.world.scenes import Scene, Thing
from pnapo_bench.world.verify import cleanliness, detect, judge
from pnapo_bench.world.vocabulary import LENGTH, tokenize


def random_scenes(count: int, seed: int) -> tuple[list[Scene], np.random.Generator]:
    rng = np.random.default_rng(seed)
    families = list(scenes.all_scenes().values())
    return [families[i % 6][rng.integers(len(families[i % 6]))] for i in range(count)], rng


def test_describe_and_parse_are_inverse_on_every_scene() -> None:
    for family in scenes.all_scenes().values():
        for scene in family:
            assert scenes.parse(scenes.describe(scene)) == scene


def test_foreign_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a prompt of the embedded world"):
        scenes.parse("a photo of a red circle on the moon")


def test_splits_share_no_scene_description_but_for_the_family_held_out_by_noise() -> None:
    for family in scenes.FAMILIES:
        keys = [{scene.key for scene in scenes.split_scenes(split)[family]} for split in scenes.SPLITS]
        if family in scenes.HELD_OUT_BY_NOISE_ONLY:
            assert keys[0] == keys[1] == keys[2]
        else:
            assert keys[0].isdisjoint(keys[1] | keys[2])
            assert keys[1].isdisjoint(keys[2])
            assert sum(map(len, keys)) == len(scenes.all_scenes()[family])


def test_each_family_that_can_has_forty_evaluation_scenes() -> None:
    held_out = scenes.split_scenes("eval")
    counts = {family: len({scene.key for scene in some}) for family, some in held_out.items()}
    assert counts.pop("single_object") == 24  # there are no more: marked as held out by noise only
    assert min(counts.values()) >= 40


def test_no_training_prompt_describes_an_evaluation_scene() -> None:
    evaluated = {scenes.parse(prompt).key for prompt in scenes.prompts("eval", 288)}
    trained = {scenes.parse(prompt).key for prompt in scenes.prompts("train", 3000)}
    assert {key[0] for key in evaluated & trained} <= {"single_object"}


def test_evaluation_prompts_have_equally_many_of_each_family() -> None:
    families = [scenes.parse(prompt).family for prompt in scenes.prompts("eval", 288)]
    assert {family: families.count(family) for family in scenes.FAMILIES} == dict.fromkeys(scenes.FAMILIES, 48)


def test_mirrored_descriptions_are_one_scene() -> None:
    a, b = Thing("circle"), Thing("star")
    assert Scene("position", (a, b), relation="left of").key == Scene("position", (b, a), relation="right of").key
    assert Scene("position", (a, b), relation="above").key != Scene("position", (a, b), relation="below").key
    assert Scene("two_object", (a, b)).key == Scene("two_object", (b, a)).key


def test_every_prompt_fits_the_text_encoder() -> None:
    every = [scenes.describe(scene) for family in scenes.all_scenes().values() for scene in family]
    assert tokenize(every).shape == (len(every), LENGTH)


def test_unknown_word_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'dog'"):
        tokenize(["a photo of a dog"])


def test_verifier_on_five_thousand_scenes() -> None:
    """At least 99.5 % of clean renders pass, at most 0.5 % with one wrong fact in the caption, no noise."""
    described, rng = random_scenes(5000, seed=11)
    pictures = render(described, rng)
    start = time.perf_counter()
    clean = [verdict.passed for verdict in judge(pictures, described)]
    rate = len(clean) / (time.perf_counter() - start)
    wrong = [scenes.with_one_wrong_fact(scene, rng) for scene in described]
    mistaken = [verdict.passed for verdict in judge(pictures, wrong)]
    noise = torch.rand(500, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert np.mean(clean) >= 0.995
    assert np.mean(mistaken) <= 0.005
    assert not any(verdict.passed for verdict in judge(noise, described[:500]))
    print(f"{rate:.0f} images/s")  # benchmarks/verifier.py measures it


def test_wrong_facts_differ_in_the_scene_they_describe() -> None:
    described, rng = random_scenes(600, seed=3)
    assert all(scenes.with_one_wrong_fact(scene, rng).key != scene.key for scene in described)


def test_detection_recovers_what_was_drawn() -> None:
    described, rng = random_scenes(60, seed=5)
    from pnapo_bench.world.render import place

    drawn = place(described, rng)
    seen = detect(draw(drawn, len(described))).best
    order = sorted(range(len(drawn.image)), key=lambda i: (int(drawn.image[i]), float(drawn.y[i]), float(drawn.x[i])))
    found = sorted(range(len(seen.image)), key=lambda i: (int(seen.image[i]), float(seen.y[i]), float(seen.x[i])))
    assert len(order) == len(found)
    for name, tolerance in (("image", 0), ("shape", 0), ("colour", 0), ("radius", 0.3), ("x", 0.3)):
        a = getattr(drawn, name)[order].double()
        b = getattr(seen, name)[found].double()
        same_row = (drawn.y[order] - seen.y[found]).abs() < 0.5  # objects of one row may swap places in the sorting
        assert ((a - b).abs() <= tolerance)[same_row].all(), name
        assert same_row.float().mean() > 0.9


def one_circle(x: float, colour: int = 0, radius: float = 6.0) -> torch.Tensor:
    one = torch.tensor([0])
    return draw(
        Objects(one, one, torch.tensor([colour]), torch.tensor([x]), torch.tensor([24.0]), torch.tensor([radius])), 1
    )


def test_drawn_circle_has_the_area_of_a_circle() -> None:
    inside = (one_circle(24.0, colour=6) - BACKGROUND) / (PALETTE[6, 0] - BACKGROUND)
    assert inside[0, 0].sum().item() == pytest.approx(np.pi * (0.97 * 6) ** 2, rel=0.01)


def test_reward_falls_as_the_picture_gets_worse() -> None:
    scene = scenes.parse("a photo of a large red circle")
    clean = one_circle(24.0)
    half = clean + 0.5 * (BACKGROUND - clean)
    small = one_circle(24.0, radius=4.2)
    blue = one_circle(24.0, colour=4)
    empty = torch.full_like(clean, BACKGROUND)
    rewards = [judge(picture, [scene])[0].reward for picture in (clean, half, small, blue, empty)]
    assert rewards[0] == pytest.approx(1.0, abs=0.02)
    assert rewards[0] > max(rewards[1:])
    assert rewards[-1] == 0.0
    assert [judge(picture, [scene])[0].passed for picture in (clean, small, blue, empty)] == [True, False, False, False]


def test_extra_object_fails_and_halves_the_reward() -> None:
    two = torch.tensor([0, 0])
    picture = draw(
        Objects(two, two, two, torch.tensor([8.0, 40.0]), torch.tensor([24.0, 24.0]), torch.tensor([6.0, 6.0])), 1
    )
    verdict = judge(picture, [scenes.parse("a photo of a red circle")])[0]
    assert not verdict.passed
    assert verdict.reason == "expected 1 objects, found 2"
    assert verdict.reward == pytest.approx(0.5, abs=0.02)
    assert judge(picture, [scenes.parse("a photo of two red circles")])[0].passed


@pytest.mark.parametrize(
    ("y", "holding"),
    [
        (8.5, {"left of"}),  # offset (32, 0.5)
        (24.0, {"left of"}),  # (32, 16): cosines 0.89 with "left of", 0.45 with "above"
        (40.0, {"left of", "above"}),  # (32, 32): 0.71 with both
    ],
)
def test_relations_hold_above_a_cosine_of_one_half(y: float, holding: set[str]) -> None:
    both = torch.tensor([0, 0])
    x, y_ = torch.tensor([8.0, 40.0]), torch.tensor([8.0, y])
    picture = draw(Objects(both, torch.tensor([0, 1]), torch.tensor([0, 4]), x, y_, torch.tensor([6.0, 6.0])), 1)
    passed = {
        relation
        for relation in scenes.RELATIONS
        if judge(picture, [scenes.parse(f"a photo of a circle {relation} a square")])[0].passed
    }
    assert passed == holding


def test_cleanliness_is_the_peak_signal_to_noise_ratio_of_the_redrawing() -> None:
    clean = one_circle(24.0)
    assert cleanliness(clean).item() > 45
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert cleanliness(noisy).item() == pytest.approx(26.02, abs=0.5)  # -10 log10(0.05^2)


def test_verifier_does_not_depend_on_the_batch() -> None:
    described, rng = random_scenes(24, seed=9)
    pictures = render(described, rng) + 0.05 * torch.randn(
        24, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)
    )
    together = judge(pictures, described)
    alone = [judge(pictures[i : i + 1], [described[i]])[0] for i in range(24)]
    assert together == alone
