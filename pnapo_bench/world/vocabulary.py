"""The words of the embedded world as token ids."""

from __future__ import annotations

import torch
from torch import Tensor

from pnapo_bench.world.scenes import COLOURS, COUNTS, RELATIONS, SHAPES, SIZES

PAD, END = 0, 1
_PLURALS = [f"{shape}{'es' if shape.endswith('ss') else 's'}" for shape in SHAPES]
_WORDS = ["a", "an", "photo", "of", "and", *COUNTS, *SIZES, *COLOURS, *SHAPES, *_PLURALS]
_WORDS += [word for relation in RELATIONS for word in relation.split() if word != "of"]
WORDS = ("<pad>", "<end>", *_WORDS)
LENGTH = 12  # the longest prompt has 11 words

_INDEX = {word: i for i, word in enumerate(WORDS)}


def tokenize(prompts: list[str]) -> Tensor:
    """Token ids [B, LENGTH]; the empty prompt is the unconditional one.

    Raises:
        ValueError: a word is not in the vocabulary, or the prompt is too long.
    """
    rows = []
    for prompt in prompts:
        words = prompt.split()
        unknown = [word for word in words if word not in _INDEX]
        if unknown or len(words) >= LENGTH:
            what = f"the word {unknown[0]!r}" if unknown else f"{len(words)} words"
            raise ValueError(
                f"expected at most {LENGTH - 1} words of the embedded world's vocabulary, got {what} "
                f"in {prompt!r}; use its own prompts, or another model"
            )
        ids = [_INDEX[word] for word in words] + [END]
        rows.append(ids + [PAD] * (LENGTH - len(ids)))
    return torch.tensor(rows)
