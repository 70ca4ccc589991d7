"""The exact verifier: what a picture shows, and whether that is what the prompt says.

``detect`` finds connected foreground regions and explains each as one drawn object: for every shape the radius and the
centre follow from the region's area and centroid (method of moments), and the shape whose anti-aliased template
overlaps best is the answer. ``judge`` compares the objects with a scene:

- exact: the picture shows the described objects and nothing else (``shapes_accuracy``);
- smooth: how nearly it does, in [0, 1] (``shapes_reward``).

``cleanliness`` redraws the detected objects and measures how far the picture is from that drawing; it does not look
at the prompt (``shapes_quality``).

Shape legend: B pictures, N objects, S shapes, C colours, W window side, H picture side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pnapo_bench.world.render import (
    BACKGROUND,
    PALETTE,
    SIZE_THRESHOLD,
    Objects,
    coverage,
    draw,
)
from pnapo_bench.world.scenes import COLOURS, SHAPES, Scene, Thing

FOREGROUND = 0.2  # distance in RGB from the background above which a pixel belongs to an object
SPECK = 6.0  # pixels; smaller regions are dirt, not objects (the smallest drawn object has 20)
MIN_OVERLAP = 0.8  # template IoU below which a region is no shape at all; above, the best shape decides
MIN_PURITY = 0.85  # share of an object's contrast explained by one colour
WINDOW = 20


@dataclass(frozen=True)
class Detections:
    """What ``detect`` saw: N objects with the evidence for every shape and colour."""

    image: Tensor  # [N] index of the picture
    overlap: Tensor  # [N, S] template IoU
    purity: Tensor  # [N, C] share of the contrast explained
    radius: Tensor  # [N, S] pixels, if it were that shape
    x: Tensor  # [N, S] centre in pixels, if it were that shape
    y: Tensor  # [N, S]

    @property
    def best(self) -> Objects:
        """Each object as its likeliest shape and colour."""
        shape = self.overlap.argmax(1)
        row = torch.arange(len(shape))
        return Objects(
            self.image,
            shape,
            self.purity.argmax(1),
            self.x[row, shape],
            self.y[row, shape],
            self.radius[row, shape],
        )


@lru_cache(maxsize=1)
def _moments() -> tuple[Tensor, Tensor]:
    """Area [S] and centroid's height [S] of each shape of radius 1 (all are symmetric left to right)."""
    side = 401
    axis = torch.linspace(-1.6, 1.6, side)
    x, y = axis.expand(side, side), axis[:, None].expand(side, side)
    n = len(SHAPES)
    # one large drawing of each shape: radius 100 "pixels" keeps the anti-aliased edge thin
    inside = coverage(torch.arange(n), 100 * x.expand(n, -1, -1), 100 * y.expand(n, -1, -1), torch.full((n,), 100.0))
    area = inside.sum((1, 2)) * (3.2 / (side - 1)) ** 2
    height = (inside * y).sum((1, 2)) / inside.sum((1, 2))
    return area, height


def detect(images: Tensor) -> Detections:
    """Objects in pictures [B, 3, H, H] in [0, 1]."""
    from scipy import ndimage

    offset = images.float() - BACKGROUND
    foreground = offset.square().sum(1).sqrt() > FOREGROUND
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True  # eight neighbours within a picture, none across pictures
    labels, found = ndimage.label(foreground.numpy(), structure)
    boxes = ndimage.find_objects(labels)
    area = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    keep = [i for i in range(found) if area[i] >= SPECK]
    if not keep:
        nothing = torch.zeros(0, len(SHAPES))
        return Detections(
            torch.zeros(0, dtype=torch.long), nothing, torch.zeros(0, len(COLOURS)), nothing, nothing, nothing
        )

    image = torch.tensor([boxes[i][0].start for i in keep])
    # a window around the middle of the region's bounding box; the picture is padded so that it always fits
    top = torch.tensor([(boxes[i][1].start + boxes[i][1].stop) // 2 for i in keep]) - WINDOW // 2
    left = torch.tensor([(boxes[i][2].start + boxes[i][2].stop) // 2 for i in keep]) - WINDOW // 2
    pad = WINDOW // 2
    padded = torch.nn.functional.pad(offset, (pad, pad, pad, pad))
    padded_labels = torch.nn.functional.pad(torch.from_numpy(labels), (pad, pad, pad, pad))
    span = torch.arange(WINDOW)
    rows, columns = top[:, None] + span, left[:, None] + span
    index = (image[:, None, None], rows[:, :, None] + pad, columns[:, None, :] + pad)
    window = padded.movedim(1, -1)[index]  # [N, W, W, 3]
    region = padded_labels[index]
    own = region == torch.tensor(keep)[:, None, None] + 1
    # the anti-aliased rim is fainter than FOREGROUND: take one more pixel all around, but nobody else's
    rim = torch.nn.functional.max_pool2d(own.float()[:, None], 3, 1, 1)[:, 0].bool() & (region == 0)
    window = window * (own | rim)[..., None]

    ink = PALETTE - BACKGROUND  # [C, 3]
    alpha = (window @ ink.T / ink.square().sum(1)).clamp(0, 1)  # [N, W, W, C]
    residual = (window[..., None, :] - alpha[..., None] * ink).square().sum((1, 2, 4))
    contrast = window.square().sum((1, 2, 3))
    purity = 1 - residual / contrast[:, None]
    colour = purity.argmax(1)
    alpha = alpha[torch.arange(len(colour)), :, :, colour]  # [N, W, W]

    mass = alpha.sum((1, 2)).clamp_min(1e-3)
    px, py = columns[:, None, :] + 0.5, rows[:, :, None] + 0.5  # pixel centres
    cx, cy = (alpha * px).sum((1, 2)) / mass, (alpha * py).sum((1, 2)) / mass
    unit_area, unit_height = _moments()
    radius = (mass[:, None] / unit_area).sqrt()  # [N, S]
    x, y = cx[:, None].expand_as(radius), cy[:, None] - unit_height * radius
    overlap = torch.empty_like(radius)
    for shape in range(len(SHAPES)):
        which = torch.full((len(keep),), shape)
        dx = (px - x[:, shape, None, None]).expand_as(alpha)
        dy = (py - y[:, shape, None, None]).expand_as(alpha)
        template = coverage(which, dx, dy, radius[:, shape])
        overlap[:, shape] = torch.minimum(template, alpha).sum((1, 2)) / torch.maximum(template, alpha).sum((1, 2))
    # a region larger than the window is no object of this world, whatever part of it the window shows
    inside = torch.tensor([area[i] for i in keep]) <= own.sum((1, 2))
    return Detections(image, overlap * inside[:, None], purity, radius, x, y)


@dataclass(frozen=True)
class Verdict:
    """Exact and smooth judgement of one picture, and the reason when it is not exact."""

    passed: bool
    reward: float
    reason: str


def judge(images: Tensor, scenes: list[Scene]) -> list[Verdict]:
    """Verdicts on pictures [B, 3, H, H] in [0, 1] against their scenes."""
    seen = detect(images)
    best = seen.best
    by_image: list[list[int]] = [[] for _ in scenes]
    for row, image in enumerate(seen.image.tolist()):
        by_image[image].append(row)
    evidence = _Evidence(
        *(t.numpy() for t in (seen.overlap, seen.purity, seen.radius, best.shape, best.colour, best.x, best.y))
    )
    return [_judge_one(scene, rows, evidence) for scene, rows in zip(scenes, by_image, strict=True)]


@dataclass(frozen=True)
class _Evidence:
    overlap: np.ndarray
    purity: np.ndarray
    radius: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    x: np.ndarray
    y: np.ndarray


def _ramp(value: float, low: float, high: float) -> float:
    return float(min(max((value - low) / (high - low), 0.0), 1.0))


def _likeness(thing: Thing, row: int, e: _Evidence) -> float:
    """How much one object looks like one described thing, in [0, 1]."""
    shape = SHAPES.index(thing.shape)
    like = _ramp(e.overlap[row, shape], 0.75, 0.95)
    if thing.colour:
        like *= _ramp(e.purity[row, COLOURS.index(thing.colour)], 0.7, 0.95)
    if thing.size:
        sign = 1 if thing.size == "large" else -1
        like *= _ramp(sign * (e.radius[row, shape] - SIZE_THRESHOLD), -0.6, 0.6)
    return like


def _is(thing: Thing, row: int, e: _Evidence) -> bool:
    """Whether one object is exactly what one described thing asks for."""
    shape, colour = e.shape[row], e.colour[row]
    return bool(
        SHAPES[shape] == thing.shape
        and thing.colour in ("", COLOURS[colour])
        and (not thing.size or (e.radius[row, shape] >= SIZE_THRESHOLD) == (thing.size == "large"))
    )


def _relation(relation: str, first: int, second: int, e: _Evidence) -> float:
    """Cosine between the relation's direction and the offset of the objects, in [-1, 1].

    Above 1/2 the relation holds, as in GenEval: what is diagonal is both left of and above.
    """
    dx, dy = float(e.x[second] - e.x[first]), float(e.y[second] - e.y[first])
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return along / max(math.hypot(dx, dy), 1e-6)


def _judge_one(scene: Scene, rows: list[int], e: _Evidence) -> Verdict:
    wanted = scene.objects
    if not rows:
        return Verdict(False, 0.0, f"expected {len(wanted)} objects, found none")
    if len(scene.things) == 1:
        likeness = sorted((_likeness(scene.things[0], row, e) for row in rows), reverse=True)
        reward = sum(likeness[: len(wanted)]) / max(len(wanted), len(rows))
        exact = all(_is(scene.things[0], row, e) for row in rows)
        related = True
    else:
        options = [(a, b) for a in rows for b in rows if a != b] or [(rows[0], rows[0])]
        first, second = scene.things

        def value(pair: tuple[int, int]) -> float:
            a, b = pair
            both = _likeness(first, a, e), _likeness(second, b, e) if a != b else 0.0
            if not scene.relation:
                return sum(both) / 2
            return sum(both) / 3 + min(both) * _ramp(_relation(scene.relation, a, b, e), -0.2, 0.8) / 3

        pair = max(options, key=value)
        reward = value(pair) * 2 / max(2, len(rows))
        exact = pair[0] != pair[1] and _is(first, pair[0], e) and _is(second, pair[1], e)
        related = not scene.relation or _relation(scene.relation, *pair, e) > 0.5
    if len(rows) != len(wanted):
        return Verdict(False, reward, f"expected {len(wanted)} objects, found {len(rows)}")
    blurred = [r for r in rows if e.overlap[r].max() < MIN_OVERLAP or e.purity[r].max() < MIN_PURITY]
    if blurred:
        return Verdict(False, reward, "an object has no clear shape or colour")
    if not exact:
        found = " and ".join(f"{COLOURS[e.colour[r]]} {SHAPES[e.shape[r]]}" for r in rows)
        return Verdict(False, reward, f"found {found}")
    if not related:
        return Verdict(False, reward, f"the objects are not {scene.relation} each other as asked")
    return Verdict(True, reward, "")


def cleanliness(images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB of each picture against its detected objects drawn cleanly, at most 50."""
    redrawn = draw(detect(images).best, len(images))
    error = (images.float() - redrawn).square().mean((1, 2, 3))
    return (-10 * error.clamp_min(1e-5).log10()).float()
