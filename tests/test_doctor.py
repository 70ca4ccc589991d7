"""Each rule of the doctor with good facts and with broken ones."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from pnapo_bench import doctor, environment, registry
from pnapo_bench.doctor import GIB, Finding, Torch, Torchvision
from pnapo_bench.errors import UserError

CPU = Torch("2.13.0+cpu", "CPU", "a processor (2 cores, 24 GiB)", [], driver=False)
CUDA = Torch("2.13.0", "CUDA 13.0", "a processor (16 cores, 128 GiB)", ["a GPU (139.8 GiB)"], driver=True)


def test_this_installation_is_sound() -> None:
    found = doctor.examine()
    assert [finding for finding in found if finding.level == "error"] == []
    assert {"Python", "torch", "torch build", "devices", "torchvision", "model tiny", "disk"} <= {
        f.subject for f in found
    }


def test_python() -> None:
    assert doctor.python((3, 11)).level == "ok"
    assert doctor.python((3, 10)).level == "error"


@pytest.mark.parametrize(
    ("requirement", "installed", "level"),
    [
        ("transformers<6,>=5", "5.23.0", "ok"),
        ("transformers<6,>=5", "4.57.1", "error"),
        ("transformers<6,>=5", "6.0.0", "error"),
        ("torch>=2.9", "2.13.0+cpu", "ok"),
        ("torch>=2.9", "2.14.0.dev20261101+cu130", "ok"),
        ("torch>=2.9", "2.8.0", "error"),
        ("numpy", "2.4.6", "ok"),
        ("numpy", "missing", "error"),
    ],
)
def test_package(requirement: str, installed: str, level: str) -> None:
    found = doctor.package(requirement, installed)
    assert found.level == level
    assert (f"pip install '{found.subject}" in found.message) == (level == "error")


def test_our_requirements_are_compared_without_the_extras() -> None:
    subjects = {finding.subject for finding in doctor.packages()}
    assert {"pnapo-bench", "torch", "diffusers", "typer"} <= subjects
    assert "mypy" not in subjects


def test_a_bare_checkout_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    monkeypatch.setattr(environment, "versions", lambda: {"python": "3.11.7", "torch": "missing"})
    assert [(f.level, f.subject) for f in doctor.packages()] == [("warning", "pnapo-bench"), ("error", "torch")]


def test_build_and_devices() -> None:
    assert [doctor.build(CPU).level, doctor.devices(CPU).level] == ["ok", "ok"]
    assert [doctor.build(CUDA).level, doctor.devices(CUDA).level] == ["ok", "ok"]
    assert "139.8 GiB" in doctor.devices(CUDA).message
    blind = Torch("2.13.0", "CUDA 13.0", "a processor", [], driver=False)
    assert doctor.devices(blind).level == "warning"
    wasteful = Torch("2.13.0+cpu", "CPU", "a processor", [], driver=True)
    assert doctor.build(wasteful).level == "warning"


@pytest.mark.parametrize(
    ("torch", "found", "level"),
    [
        (CPU, None, "ok"),
        (CPU, Torchvision("0.28.0+cpu", "torch==2.13.0", cuda=False), "ok"),
        (CPU, Torchvision("0.28.0", "torch==2.13.0", cuda=True), "error"),
        (CUDA, Torchvision("0.28.0", "torch==2.13.0", cuda=True), "ok"),
        (CUDA, Torchvision("0.27.0", "torch==2.12.0", cuda=True), "error"),
        (CPU, Torchvision("0.28.0", None, cuda=False), "ok"),
    ],
)
def test_torchvision(torch: Torch, found: Torchvision | None, level: str) -> None:
    assert doctor.torchvision(torch, found).level == level


@pytest.mark.parametrize("cuda", [True, False])
def test_torchvision_is_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    info = tmp_path / "torchvision-0.28.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
        "Requires-Dist: numpy\nRequires-Dist: torch (==2.13.0)\nRequires-Dist: scipy; extra == 'scipy'\n"
    )
    (info / "RECORD").write_text("torchvision/__init__.py,,\ntorchvision/_C.so,,\ntorchvision/gone/_C2.so,,\n")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"\0libtorch_cuda.so\0" if cuda else b"\0libtorch_cpu.so\0")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.read_torchvision() == Torchvision("0.28.0", "torch (==2.13.0)", cuda)


def test_weights(tmp_path: Path) -> None:
    def unreadable(folder: Path) -> str:
        raise PermissionError("no permission")

    assert "lacks the weights of vae" in doctor.weights(tmp_path, ["vae"], str).message
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").touch()
    assert doctor.weights(tmp_path, ["vae"], lambda _: 64 * "a") == Finding("ok", "model tiny", "weights " + 12 * "a")
    assert doctor.weights(tmp_path, ["vae"], unreadable).level == "error"


def test_plugins() -> None:
    def names(kind: registry.Kind) -> dict[str, str]:
        return {"ours": "pnapo_bench:A", "good": "theirs:A", "absent": "theirs:B", "wild": "theirs:C"}

    def get(kind: registry.Kind, name: str) -> Any:
        if name == "absent":
            raise UserError("method 'absent' is announced as theirs:B, which cannot be imported")
        if name == "wild":
            raise ZeroDivisionError("division by zero")

    found = doctor.plugins("methods", ["ours"], names, get)
    assert [finding.level for finding in found] == ["ok", "error", "error"]
    assert found[1].message.startswith("method 'absent'")
    assert found[2].message == "'wild': ZeroDivisionError: division by zero"


def test_no_plugin_and_a_name_used_twice() -> None:
    def twice(kind: registry.Kind) -> dict[str, str]:
        raise UserError("two methods are called 'pnapo'")

    assert doctor.plugins("methods", ["ours"], lambda kind: {"ours": "pnapo_bench:A"}, registry.get)[0].level == "ok"
    assert doctor.plugins("methods", ["ours"], twice, registry.get) == [
        Finding("error", "plugin methods", "two methods are called 'pnapo'")
    ]


def test_disk() -> None:
    assert doctor.disk(2 * GIB, Path("here")) == Finding("ok", "disk", "2.0 GiB free in here")
    assert doctor.disk(GIB // 2, Path("here")).level == "warning"
