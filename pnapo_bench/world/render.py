"""Pictures of scenes: 48 x 48 RGB in [0, 1], objects in the cells of a 3 x 3 grid on grey.

Shape legend: N objects, W window side, H picture side. Lengths are pixels; a shape's outline is given for radius 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pnapo_bench.world.scenes import COLOURS, SHAPES, SIZES, Scene

SIDE = 48
CELL = 16
GRID = SIDE // CELL
BACKGROUND = 0.5
RADIUS = {"small": (4.0, 4.6), "large": (5.7, 6.3)}
SIZE_THRESHOLD = 5.15  # halfway between the largest small and the smallest large radius
JITTER = 0.6
PALETTE = torch.tensor(
    [
        [0.86, 0.12, 0.12],  # red
        [0.98, 0.55, 0.05],  # orange
        [0.98, 0.90, 0.10],  # yellow
        [0.10, 0.62, 0.20],  # green
        [0.10, 0.25, 0.85],  # blue
        [0.55, 0.10, 0.70],  # purple
        [1.00, 1.00, 1.00],  # white
        [0.00, 0.00, 0.00],  # black
    ]
)

_TABLE_SIDE = 161
_TABLE_REACH = 3.2  # radii from the centre to the table's border: a window's corner at the smallest radius


@dataclass(frozen=True)
class Objects:
    """N drawn or detected objects; indices into SHAPES and COLOURS, centres and radii in pixels."""

    image: Tensor  # [N] which picture of the batch
    shape: Tensor  # [N]
    colour: Tensor  # [N]
    x: Tensor  # [N]
    y: Tensor  # [N]
    radius: Tensor  # [N]


def _outline(shape: str) -> np.ndarray:
    """Vertices [V, 2] of a polygon of radius about 1, y down."""

    def ring(n: int, radii: list[float], start: float) -> np.ndarray:
        angle = start + 2 * np.pi * np.arange(n) / n
        radius = np.resize(radii, n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)

    if shape == "square":
        return ring(4, [0.85 * np.sqrt(2)], np.pi / 4)
    if shape == "diamond":
        return ring(4, [1.1], 0.0)
    if shape == "triangle":
        down: np.ndarray = ring(3, [1.15], -np.pi / 2) + np.array([0.0, 0.15])
        return down
    if shape == "star":
        return ring(10, [1.15, 0.48], -np.pi / 2)
    if shape == "cross":
        a, b = 0.36, 1.0
        corner = np.array([[b, -a], [b, a], [a, a]])
        turn = np.array([[0, 1], [-1, 0]])
        return np.concatenate([corner @ np.linalg.matrix_power(turn, k) for k in range(4)])
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)  # heart
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], 1) / 16


def _signed_distance(shape: str, points: np.ndarray) -> np.ndarray:
    """Distance [P] of points [P, 2] to the outline, negative inside."""
    length = np.linalg.norm(points, axis=-1)
    if shape == "circle":
        return np.asarray(length - 0.97)
    if shape == "ring":
        return np.asarray(np.abs(length - 0.76) - 0.24)
    a = _outline(shape)
    b = np.roll(a, -1, axis=0)
    edge, to_point = b - a, points[:, None] - a
    along = np.clip((to_point * edge).sum(-1) / (edge**2).sum(-1), 0, 1)
    distance = np.linalg.norm(to_point - along[..., None] * edge, axis=-1).min(1)
    # even-odd rule: count the edges that a ray to the right crosses
    straddles = (a[:, 1] > points[:, None, 1]) != (b[:, 1] > points[:, None, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = a[:, 0] + (points[:, None, 1] - a[:, 1]) * edge[:, 0] / edge[:, 1]
    inside = (straddles & (points[:, None, 0] < crossing)).sum(1) % 2 == 1
    signed: np.ndarray = np.where(inside, -distance, distance)
    return signed


@lru_cache(maxsize=1)
def distance_tables() -> Tensor:
    """Signed distances of every shape of radius 1, tabulated on a square: [shape, T, T]."""
    axis = np.linspace(-_TABLE_REACH, _TABLE_REACH, _TABLE_SIDE)
    points = np.stack(np.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    tables = [_signed_distance(shape, points).reshape(_TABLE_SIDE, _TABLE_SIDE) for shape in SHAPES]
    return torch.tensor(np.stack(tables), dtype=torch.float32)


def coverage(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel an object covers, in [0, 1].

    Args:
        shape: [N] index into SHAPES.
        dx: [N, W, W] pixel centre minus object centre.
        dy: likewise, down.
        radius: [N] in pixels.
    """
    # [N, 1, 1] radii: the table is looked up in units of the radius, and its value scaled back to pixels
    r = radius.clamp_min(1e-3)[:, None, None]
    place = torch.stack([dx / r, dy / r], -1) / _TABLE_REACH
    covered = torch.empty_like(dx)
    for index in range(len(SHAPES)):
        mine = (shape == index).nonzero(as_tuple=True)[0]
        if len(mine) == 0:
            continue
        n, w, h = place[mine].shape[:3]
        distance = torch.nn.functional.grid_sample(
            distance_tables()[index][None, None],
            place[mine].reshape(1, n, w * h, 2),
            padding_mode="border",
            align_corners=True,
        ).reshape(n, w, h)
        covered[mine] = (0.5 - distance * r[mine]).clamp(0, 1)
    return covered


def draw(objects: Objects, count: int) -> Tensor:
    """Pictures [count, 3, H, H]; later objects paint over earlier ones where they overlap."""
    pictures = torch.full((count, 3, SIDE, SIDE), BACKGROUND)
    axis = torch.arange(SIDE) + 0.5
    for start in range(0, len(objects.image), 512):
        part = slice(start, start + 512)
        n = len(objects.image[part])
        dx = (axis[None, None, :] - objects.x[part, None, None]).expand(n, SIDE, SIDE)
        dy = (axis[None, :, None] - objects.y[part, None, None]).expand(n, SIDE, SIDE)
        alpha = coverage(objects.shape[part], dx, dy, objects.radius[part])[:, None]
        colour = PALETTE[objects.colour[part]][:, :, None, None]
        for i, picture in enumerate(objects.image[part].tolist()):
            pictures[picture] += alpha[i] * (colour[i] - pictures[picture])
    return pictures


def place(scenes: list[Scene], rng: np.random.Generator) -> Objects:
    """Positions, and whatever the descriptions leave open, at random; the objects of a count look alike."""
    rows: list[tuple[int, int, int, float, float, float]] = []
    for image, scene in enumerate(scenes):
        cells = _cells(scene, rng)
        open_colour, open_size = rng.integers(len(COLOURS)), SIZES[rng.integers(len(SIZES))]
        for thing, (column, row) in zip(scene.objects, cells, strict=True):
            if scene.count == 1:
                open_colour, open_size = rng.integers(len(COLOURS)), SIZES[rng.integers(len(SIZES))]
            colour = COLOURS.index(thing.colour) if thing.colour else int(open_colour)
            x, y = (CELL * (np.array([column, row]) + 0.5) + rng.uniform(-JITTER, JITTER, 2)).tolist()
            radius = rng.uniform(*RADIUS[thing.size or open_size])
            rows.append((image, SHAPES.index(thing.shape), colour, x, y, radius))
    image_, shape, colour_, x_, y_, radius_ = zip(*rows, strict=True)
    return Objects(
        torch.tensor(image_), torch.tensor(shape), torch.tensor(colour_),
        torch.tensor(x_), torch.tensor(y_), torch.tensor(radius_),
    )  # fmt: skip


def _cells(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(column, row) of each object; related things share a row or a column."""
    if not scene.relation:
        return [(int(c) % GRID, int(c) // GRID) for c in rng.permutation(GRID * GRID)[: len(scene.objects)]]
    low, high = sorted(rng.permutation(GRID)[:2].tolist())
    across = int(rng.integers(GRID))
    first, second = (low, high) if scene.relation in ("left of", "above") else (high, low)
    if scene.relation in ("left of", "right of"):
        return [(first, across), (second, across)]
    return [(across, first), (across, second)]


def render(scenes: list[Scene], rng: np.random.Generator) -> Tensor:
    """One random picture of each scene: [B, 3, H, H] in [0, 1]."""
    return draw(place(scenes, rng), len(scenes))
