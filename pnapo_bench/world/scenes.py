"""What a prompt of the embedded world says: scenes, their English, and the splits by content.

A scene is a description, not a picture: things with a shape and perhaps a colour, a size, a count or a
relation. Prompts follow GenEval's six families (Ghosh et al. 2023, arXiv 2310.11513):

    single_object  a photo of a small star
    two_object     a photo of a circle and a large ring
    counting       a photo of three small hearts
    colors         a photo of a large purple cross
    position       a photo of a star above a large square
    color_attr     a photo of a red circle and a blue square

``describe`` and ``parse`` are inverse to each other. Two prompts with the same ``Scene.key`` describe the same
scene ("A left of B" and "B right of A"); the splits part keys, so no description is in two of them.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
FAMILIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

Split = Literal["train", "tune", "eval"]
SPLITS: tuple[Split, ...] = ("train", "tune", "eval")

# Scenes per family held out for (eval, tune); the rest is for training. single_object has only 24 scenes, so
# it is in every split and held out by noise alone.
HELD_OUT = {
    "two_object": (48, 24),
    "counting": (40, 16),
    "colors": (48, 24),
    "position": (48, 48),
    "color_attr": (48, 48),
}
HELD_OUT_BY_NOISE_ONLY = ("single_object",)
_SPLIT_SEED = 20260509  # part of the definition of the world: changing it changes every split

_MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True, order=True)
class Thing:
    """One described object; ``""`` where the description leaves the colour or the size open."""

    shape: str
    colour: str = ""
    size: str = ""

    def words(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Scene:
    """A description: ``count`` times one thing, or two different things, perhaps related."""

    family: str
    things: tuple[Thing, ...]
    count: int = 1
    relation: str = ""

    @property
    def objects(self) -> tuple[Thing, ...]:
        """What a picture of it shows, one thing an object."""
        return self.things * self.count

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two scenes that describe the same content in another order of words."""
        things, relation = self.things, self.relation
        if relation in ("right of", "below"):
            things, relation = things[::-1], _MIRROR[relation]
        elif not relation:
            things = tuple(sorted(things))
        return (self.family, self.count, relation, things)


def describe(scene: Scene) -> str:
    """The prompt of a scene."""
    if scene.count > 1:
        number = next(word for word, count in COUNTS.items() if count == scene.count)
        plural = "es" if scene.things[0].shape.endswith("ss") else "s"
        return f"a photo of {number} {scene.things[0].words()}{plural}"
    link = f" {scene.relation or 'and'} "
    return f"a photo of {link.join(_article(thing.words()) for thing in scene.things)}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_THING = rf"(?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})"
_PROMPT = re.compile(
    rf"a photo of (?:({'|'.join(COUNTS)}) {_THING}e?s|an? {_THING}(?: (and|{'|'.join(RELATIONS)}) an? {_THING})?)"
)


def parse(prompt: str) -> Scene:
    """The scene of a prompt.

    Raises:
        ValueError: the prompt is not one of this world's.
    """
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(
            f"expected a prompt of the embedded world such as 'a photo of a red circle and a blue square', "
            f"got {prompt!r}; use its own prompts, or another eval"
        )
    number, *rest = match.groups()
    if number:
        size, colour, shape = rest[:3]
        return Scene("counting", (Thing(shape, colour or "", size or ""),), COUNTS[number])
    size, colour, shape, link, size2, colour2, shape2 = rest[3:]
    first = Thing(shape, colour or "", size or "")
    if link is None:
        return Scene("colors" if first.colour else "single_object", (first,))
    second = Thing(shape2, colour2 or "", size2 or "")
    if link != "and":
        return Scene("position", (first, second), relation=link)
    return Scene("color_attr" if first.colour else "two_object", (first, second))


@lru_cache(maxsize=1)
def all_scenes() -> dict[str, tuple[Scene, ...]]:
    """Family -> every scene of it, one per key."""
    sizes = ("", *SIZES)
    sized = [Thing(shape, "", size) for shape in SHAPES for size in sizes]
    coloured = [Thing(shape, colour) for shape in SHAPES for colour in COLOURS]
    pairs = [(a, b) for a, b in itertools.combinations(sized, 2) if a.shape != b.shape]
    return {
        "single_object": tuple(Scene("single_object", (thing,)) for thing in sized),
        "two_object": tuple(Scene("two_object", pair) for pair in pairs),
        "counting": tuple(Scene("counting", (thing,), n) for thing in sized for n in COUNTS.values()),
        "colors": tuple(Scene("colors", (Thing(t.shape, t.colour, size),)) for t in coloured for size in sizes),
        "position": tuple(
            Scene("position", pair, relation=relation)
            for a, b in pairs
            for pair in ((a, b), (b, a))
            for relation in ("left of", "above")
        ),
        "color_attr": tuple(
            Scene("color_attr", (a, b))
            for a, b in itertools.combinations(coloured, 2)
            if a.shape != b.shape and a.colour != b.colour
        ),
    }


@lru_cache(maxsize=3)
def split_scenes(split: Split) -> dict[str, tuple[Scene, ...]]:
    """Family -> the scenes of one split, in a fixed order."""
    if split not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    parted: dict[str, tuple[Scene, ...]] = {}
    for index, (family, scenes) in enumerate(all_scenes().items()):
        if family in HELD_OUT_BY_NOISE_ONLY:
            parted[family] = scenes
            continue
        order = np.random.default_rng([_SPLIT_SEED, index]).permutation(len(scenes))
        n_eval, n_tune = HELD_OUT[family]
        chosen = {
            "eval": order[:n_eval],
            "tune": order[n_eval : n_eval + n_tune],
            "train": order[n_eval + n_tune :],
        }[split]
        parted[family] = tuple(scenes[i] for i in chosen)
    return parted


def phrase(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same content, with the two things named in a random order."""
    if len(scene.things) == 2 and rng.random() < 0.5:
        return Scene(scene.family, scene.things[::-1], scene.count, _MIRROR.get(scene.relation, ""))
    return scene


def with_one_wrong_fact(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one stated fact changed, so that no picture of the one shows the other."""
    facts = [(i, name) for i, thing in enumerate(scene.things) for name in ("shape", "colour", "size")]
    facts = [(i, name) for i, name in facts if getattr(scene.things[i], name)]
    choice = int(rng.integers(len(facts) + (scene.count > 1) + bool(scene.relation)))
    if choice == len(facts):
        if scene.relation:
            others = [r for r in RELATIONS if r != scene.relation]
            return replace(scene, relation=others[rng.integers(len(others))])
        counts = [n for n in COUNTS.values() if n != scene.count]
        return replace(scene, count=counts[rng.integers(len(counts))])
    index, name = facts[choice]
    taken = {getattr(thing, name) for thing in scene.things}
    values = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}[name]
    others = [v for v in values if v not in taken] or [v for v in values if v != getattr(scene.things[index], name)]
    changed = replace(scene.things[index], **{name: others[rng.integers(len(others))]})
    return replace(scene, things=(*scene.things[:index], changed, *scene.things[index + 1 :]))


def prompts(split: Split, count: int | None = None, seed: int = 0) -> list[str]:
    """Prompts of a split, families in turn; ``count=None`` takes each scene once.

    A family with fewer scenes than its share starts again from its first one, phrased anew.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    shuffled = {
        family: [scenes[i] for i in rng.permutation(len(scenes))] for family, scenes in split_scenes(split).items()
    }
    if count is None:
        return [describe(phrase(scene, rng)) for scenes in shuffled.values() for scene in scenes]
    families = list(shuffled.values())
    chosen = (families[i % len(families)][i // len(families) % len(families[i % len(families)])] for i in range(count))
    return [describe(phrase(scene, rng)) for scene in chosen]
