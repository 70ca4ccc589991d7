"""Prompt sets by name, as (prompt, group) rows; the group is GenEval's tag or the world's family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    text: str
    group: str


def training_prompts(count: int, seed: int) -> list[Prompt]:
    """Prompts of the embedded world's training split, families in turn."""
    return _of_split("train", count, seed)


def held_out_prompts(split: str, count: int) -> list[Prompt]:
    """Prompts of its evaluation or tuning split, families in turn and always the same.

    288 prompts are 48 of each family. A family with fewer scenes (counting 40, single_object 24) starts again, with
    other noises; equal numbers make the plain mean the unweighted mean of the families, as GenEval averages.
    """
    return _of_split(split, count, seed=0)


def _of_split(split: str, count: int, seed: int) -> list[Prompt]:
    from pnapo_bench.world import scenes

    assert split in scenes.SPLITS, split
    texts = scenes.prompts(split, count, seed)
    return [Prompt(text, scenes.parse(text).family) for text in texts]
