"""The picture grid: the same prompts and noises under every method, chosen by a rule and never by their looks."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pnapo_bench.images import Images
from pnapo_bench.report.table import Entry

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

PER_GROUP = 2  # prompts of every group: its first
TILE = 192  # pixels, the longer side of a picture
FRAME = 4  # pixels around it
GAP = 8  # pixels between cells
LABEL = 240  # pixels for the prompt
FONT = 16  # pixels
PASSED, FAILED, NEUTRAL = (0, 158, 115), (213, 40, 0), (200, 200, 200)

CHOICE = (
    f"the first {PER_GROUP} evaluation prompts of every group, each with its first noise; the lowest seed of each row"
)
MARKED = "shapes_accuracy"


@dataclass(frozen=True)
class Column:
    """One model's pictures: item -> PNG, and item -> whether it shows what the prompt says, where that is known."""

    name: str
    png: dict[int, bytes]
    passed: dict[int, bool]


def grid(rows: Sequence[Entry]) -> Image | None:
    """The grid: a row a prompt, a column for base and for each trained entry; None where images are missing."""
    first = rows[0].runs[0]
    trained = [entry for entry in rows if entry.trained]
    wanted = [("base", rows[0], "base"), *((entry.name, entry, "trained") for entry in trained)]
    folders = [_folder(entry, which) for _, entry, which in wanted]
    if not all(folder and (folder / "manifest.json").is_file() for folder in folders):
        return None
    chosen = choice(first.scores)
    columns = [
        _column(name, folder, entry, "base" if which == "base" else "value", list(chosen))
        for (name, entry, which), folder in zip(wanted, folders, strict=True)
        if folder
    ]
    return _draw(chosen, columns)


def choice(scores: pd.DataFrame) -> dict[int, str]:
    """Item -> prompt: the first ``PER_GROUP`` items of each group, groups in the order of their first items."""
    items = scores.sort_values("item").drop_duplicates("item")
    order = {group: i for i, group in enumerate(items["group"].unique())}
    chosen = items.groupby("group").head(PER_GROUP)
    chosen = chosen.sort_values("group", key=lambda groups: groups.map(order), kind="stable")
    return {int(item): str(prompt) for item, prompt in zip(chosen["item"], chosen["prompt"], strict=True)}


def _folder(entry: Entry, which: str) -> Path | None:
    run = entry.runs[0]
    return run.images(which) if "images" in run.record else None


def _column(name: str, folder: Path, entry: Entry, values: str, items: list[int]) -> Column:
    pictures = Images(folder).frame(pixels=True)
    pictures = pictures[(pictures["noise"] == 0) & pictures["item"].isin(items)]
    scores = entry.scores[0]
    marks = scores[(scores["scorer"] == MARKED) & (scores["noise"] == 0)]
    return Column(
        name,
        {int(item): png for item, png in zip(pictures["item"], pictures["png"], strict=True)},
        {int(item): bool(value == 1) for item, value in zip(marks["item"], marks[values], strict=True)},
    )


def _draw(prompts: dict[int, str], columns: list[Column]) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=FONT)
    tiles = {(c.name, item): _tile(c.png[item]) for c in columns for item in prompts}
    wide = max(tile.width for tile in tiles.values()) + 2 * FRAME
    high = max(tile.height for tile in tiles.values()) + 2 * FRAME
    heads = [_wrapped(column.name, font, wide) for column in columns]
    head = max(text.count("\n") + 1 for text in heads) * (FONT + 6)
    size = (LABEL + len(columns) * (wide + GAP) + GAP, head + len(prompts) * (high + GAP) + 2 * GAP)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for x, text in enumerate(heads):
        pen.multiline_text((LABEL + x * (wide + GAP), GAP), text, "black", font)
    for y, (item, prompt) in enumerate(prompts.items()):
        top = head + 2 * GAP + y * (high + GAP)
        pen.multiline_text((GAP, top), _wrapped(prompt, font, LABEL - 2 * GAP), "black", font)
        for x, column in enumerate(columns):
            left, tile = LABEL + x * (wide + GAP), tiles[column.name, item]
            colour = {True: PASSED, False: FAILED, None: NEUTRAL}[column.passed.get(item)]
            pen.rectangle((left, top, left + tile.width + 2 * FRAME - 1, top + tile.height + 2 * FRAME - 1), colour)
            canvas.paste(tile, (left + FRAME, top + FRAME))
    return canvas


def _tile(png: bytes) -> Image:
    """A picture with ``TILE`` pixels on its longer side, enlarged by whole factors without smoothing."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    longer = max(picture.size)
    if longer <= TILE:
        factor = TILE // longer
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize((round(picture.width * TILE / longer), round(picture.height * TILE / longer)))


def _wrapped(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """Text in lines of about ``width`` pixels, at most eight."""
    characters = int(width / font.getlength("n"))
    return textwrap.fill(" ".join(text.split()), characters, max_lines=8, placeholder=" ...")
