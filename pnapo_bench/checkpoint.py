"""Parameters and optimiser moments in one safetensors file, so that a checkpoint is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic
from pnapo_bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def moments(optimizer: Any, prefix: str = "optimizer") -> dict[str, Tensor]:
    """An optimiser's state as tensors, ``PREFIX.INDEX.NAME``."""
    import torch

    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_moments(optimizer: Any, tensors: dict[str, Tensor], prefix: str = "optimizer") -> None:
    """Puts back, in place, what ``moments`` took; other tensors are ignored."""
    state = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            index, name = key.removeprefix(f"{prefix}.").split(".")
            state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)


def save(path: Path, step: int, parameters: dict[str, torch.nn.Parameter], optimizer: Any) -> None:
    """``step`` updates have been made."""
    tensors = {f"parameter.{name}": p.detach() for name, p in parameters.items()} | moments(optimizer)
    atomic.write_tensors(path, tensors, {"step": str(step)})


def load(path: Path, parameters: dict[str, torch.nn.Parameter], optimizer: Any) -> int:
    """Restores both in place; the number of updates made, 0 where there is no checkpoint.

    Raises:
        UserError: the file is damaged or of another model.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it to start this run again") from error
    restore_moments(optimizer, tensors)
    return step
