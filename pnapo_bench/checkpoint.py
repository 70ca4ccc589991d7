"""Parameters and optimiser moments in one safetensors file, so that a checkpoint is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench import atomic
from pnapo_bench.errors import UserError

if TYPE_CHECKING:
    import torch


def save(path: Path, step: int, parameters: dict[str, torch.nn.Parameter], optimizer: Any) -> None:
    """``step`` updates have been made."""
    import torch

    tensors = {f"parameter.{name}": p.detach() for name, p in parameters.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
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
    state = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)
    return step
