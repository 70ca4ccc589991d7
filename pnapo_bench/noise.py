"""Randomness as a pure function of its key, and the prior noise of images.

Every random draw of the project comes from ``generator(*key)``. The key names what the draw is for, e.g.
``("train", seed, pair, visit)``, so that a draw depends on neither the batch size, the device, the number of processes
nor on what was drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*key: str | int) -> int:
    """A 63-bit seed that is a hash of the key."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*key: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(seed_of(*key))


def prior_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The prior noise [B, *shape] of images, float32, each drawn from its own seed on the CPU."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor."""
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
