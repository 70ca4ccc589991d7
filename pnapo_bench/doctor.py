"""What is wrong with an installation, found before a run finds it.

Every rule is a pure function of facts; ``examine`` gathers the facts of this machine and asks them all.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pnapo_bench import environment, registry

GIB = 2**30
OLDEST_PYTHON = (3, 11)
LEAST_DISK = GIB  # bytes; the data and runs of a small grid

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What a rule says of its subject; an error is something that a run would fail at."""

    level: Level
    subject: str
    message: str


@dataclass(frozen=True)
class Torch:
    """The build of torch, and what it sees."""

    version: str
    backend: str  # "CPU", "CUDA 13.0" or "ROCm 7.0"
    cpu: str  # name and memory
    gpus: Sequence[str]
    driver: bool  # an NVIDIA driver is installed


@dataclass(frozen=True)
class Torchvision:
    """An installed torchvision, as its files describe it; importing a broken one would fail."""

    version: str
    wants: str | None  # its requirement on torch, such as "torch==2.13.0"
    cuda: bool  # its compiled part needs libtorch_cuda


def examine() -> list[Finding]:
    """All findings on this machine and the current folder."""
    found = [python(sys.version_info[:2]), *packages()]
    torch = read_torch()
    if isinstance(torch, Finding):
        found.append(torch)
    else:
        found += [build(torch), devices(torch), torchvision(torch, read_torchvision())]
    found.append(tiny_weights())
    for kind in get_args(registry.Kind):
        found += plugins(kind, registry.TABLES[kind], registry.names, registry.get)
    found.append(disk(shutil.disk_usage(Path.cwd()).free, Path.cwd()))
    return found


# ---------------------------------------------------------------------------------------------- rules


def python(version: tuple[int, ...]) -> Finding:
    text = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version < OLDEST_PYTHON:
        return Finding("error", "Python", f"expected 3.11 or newer, got {text}")
    return Finding("ok", "Python", text)


def package(requirement: str, installed: str) -> Finding:
    """A requirement such as ``transformers>=5,<6`` against the installed version, or ``missing``."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    if installed == "missing":
        return Finding("error", wanted.name, f"missing; run: pip install '{wanted}'")
    if not wanted.specifier.contains(installed, prereleases=True):
        text = f"expected {wanted.specifier}, got {installed}; run: pip install '{wanted}'"
        return Finding("error", wanted.name, text)
    return Finding("ok", wanted.name, installed)


def build(torch: Torch) -> Finding:
    text = f"{torch.version}, {torch.backend} build"
    if torch.driver and torch.backend == "CPU":
        return Finding(
            "warning", "torch build", f"{text}, but there is an NVIDIA driver; a CUDA build would use the GPU"
        )
    return Finding("ok", "torch build", text)


def devices(torch: Torch) -> Finding:
    text = ", ".join([torch.cpu, *torch.gpus])
    if torch.backend != "CPU" and not torch.gpus:
        return Finding("warning", "devices", f"{text}; torch is a {torch.backend} build but sees no GPU")
    return Finding("ok", "devices", text)


def torchvision(torch: Torch, found: Torchvision | None) -> Finding:
    """Nothing here needs torchvision, but transformers, diffusers and peft import it where it is installed."""
    from packaging.requirements import Requirement

    def broken(reason: str) -> Finding:
        advice = "importing CLIPModel, diffusers pipelines or peft would fail; run: pip uninstall torchvision"
        return Finding("error", "torchvision", f"{reason}; {advice}, or install the one that belongs to this torch")

    if found is None:
        return Finding("ok", "torchvision", "not installed, not needed")
    if found.wants and not Requirement(found.wants).specifier.contains(torch.version, prereleases=True):
        return broken(f"{found.version} needs {found.wants}, torch is {torch.version}")
    if found.cuda and not torch.backend.startswith("CUDA"):
        return broken(f"{found.version} is a CUDA build, torch {torch.version} is a {torch.backend} build")
    return Finding("ok", "torchvision", f"{found.version}, fits torch")


def weights(folder: Path, parts: Iterable[str], hash_of: Callable[[Path], str]) -> Finding:
    """The embedded model's weights are there and readable."""
    missing = [part for part in parts if not list((folder / part).glob("*.safetensors"))]
    if missing:
        text = f"{folder} lacks the weights of {', '.join(missing)}; install pnapo-bench again"
        return Finding("error", "model tiny", text)
    try:
        return Finding("ok", "model tiny", f"weights {hash_of(folder)[:12]}")
    except OSError as error:
        return Finding("error", "model tiny", f"its weights cannot be read: {error}")


def plugins(
    kind: registry.Kind,
    own: Iterable[str],
    names: Callable[[registry.Kind], dict[str, str]],
    get: Callable[[registry.Kind, str], object],
) -> list[Finding]:
    """Other packages' methods, evals or backbones: no name twice, and each can be imported."""
    subject = f"plugin {kind}"
    try:
        foreign = [name for name in names(kind) if name not in set(own)]
    except ValueError as error:
        return [Finding("error", subject, str(error))]
    found = []
    for name in foreign:
        try:
            get(kind, name)
        except Exception as error:  # another package's module may fail in any way
            text = str(error) if isinstance(error, ValueError) else f"{name!r}: {type(error).__name__}: {error}"
            found.append(Finding("error", subject, text))
        else:
            found.append(Finding("ok", subject, name))
    return found or [Finding("ok", subject, "none installed")]


def disk(free: int, folder: Path) -> Finding:
    """``free`` bytes on the disk of a folder."""
    text = f"{free / GIB:.1f} GiB free in {folder}"
    if free < LEAST_DISK:
        return Finding("warning", "disk", f"{text}; a run may not have the room it needs")
    return Finding("ok", "disk", text)


# ---------------------------------------------------------------------------------------------- facts


def packages() -> list[Finding]:
    """Our own requirements, as our metadata lists them; from a bare checkout, the packages a record names."""
    try:
        mine = importlib.metadata.distribution("pnapo-bench")
    except importlib.metadata.PackageNotFoundError:
        text = "not installed, so that versions are not compared; run: pip install -e ."
        versions = environment.versions().items()
        rest = [package(name, version) for name, version in versions if name not in ("python", "pnapo-bench")]
        return [Finding("warning", "pnapo-bench", text), *rest]
    requirements = [line for line in mine.requires or [] if "extra ==" not in line]
    return [Finding("ok", "pnapo-bench", mine.version), *(package(line, _installed(line)) for line in requirements)]


def _installed(requirement: str) -> str:
    from packaging.requirements import Requirement

    try:
        return importlib.metadata.version(Requirement(requirement).name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def read_torch() -> Torch | Finding:
    """The facts, or why there are none."""
    try:
        import torch
    except Exception as error:  # a broken build fails with OSError, RuntimeError, ...
        return Finding("error", "torch build", f"torch cannot be imported: {type(error).__name__}: {error}")
    machine = environment.hardware()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Torch(
        version=torch.__version__,
        backend=_backend(torch.version),
        cpu=f"{machine['cpu']} ({machine['cores']} cores, {machine['memory_gib']} GiB)",
        gpus=[f"{gpu.name} ({gpu.total_memory / GIB:.1f} GiB)" for gpu in gpus],
        driver=shutil.which("nvidia-smi") is not None,
    )


def _backend(version: Any) -> str:
    if version.cuda:
        return f"CUDA {version.cuda}"
    return f"ROCm {version.hip}" if version.hip else "CPU"


def read_torchvision() -> Torchvision | None:
    """None where it is not installed. PyPI's CUDA build has no tag in its version, so its library is looked at."""
    from packaging.requirements import Requirement

    try:
        installed = importlib.metadata.distribution("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return None
    wants = [line for line in installed.requires or [] if Requirement(line).name == "torch"]
    libraries = [Path(str(file.locate())) for file in installed.files or [] if file.match("torchvision/_C*.so")]
    return Torchvision(
        version=installed.version,
        wants=wants[0] if wants else None,
        cuda=any(library.is_file() and b"libtorch_cuda" in library.read_bytes() for library in libraries),
    )


def tiny_weights() -> Finding:
    try:
        from pnapo_bench.backbones import tiny
    except ImportError as error:
        return Finding("error", "model tiny", f"cannot be imported: {error}")
    return weights(tiny.WEIGHTS, tiny.PARTS, tiny.weights_hash)
