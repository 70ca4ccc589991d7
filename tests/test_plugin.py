"""A third party's package, really built and installed, is found by its entry points and used by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "plugin"
SHORT = ("train.steps=2", "train.batch=4", "data.prompts=12", "eval.prompts=6", "eval.noises=1")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the plugin installed in it."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SOURCE, folder / "source")  # building leaves files beside the source
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def pnapo_bench(*arguments: str, folder: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with ``site`` on the path or without it."""
    path = [str(site)] if site else []
    inherited = os.environ.get("PYTHONPATH")
    # made absolute, because the process runs elsewhere
    path += [str(Path(part).resolve()) for part in inherited.split(os.pathsep)] if inherited else []
    return subprocess.run(
        [sys.executable, "-m", "pnapo_bench", *arguments],
        cwd=folder,
        # one thread: the model is too small to gain from more, and waits for them where the cores are busy
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("kind", "name"), [("methods", "example-hinge"), ("evals", "example_brightness")])
def test_it_is_listed(kind: str, name: str, site: Path, tmp_path: Path) -> None:
    done = pnapo_bench("list", kind, folder=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


@pytest.mark.slow
def test_it_trains_and_scores(site: Path, tmp_path: Path) -> None:
    own = ("method.beta=100", "data.score=example_brightness", "eval.evals=[shapes_accuracy, example_brightness]")
    flags = [part for setting in (*SHORT, *own) for part in ("--set", setting)]
    done = pnapo_bench("run", "--method", "example-hinge", *flags, "--out", "out", folder=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out" / "runs").glob("*/record.json")
    record = json.loads(file.read_text())
    assert (record["method"], record["source"]) == ("example-hinge", "test plugin")
    assert record["config"]["method_config"] == {"coupling": "prior", "beta": 100.0}
    assert record["training"]["steps"] == 2
    assert set(record["scores"]) == {"shapes_accuracy", "example_brightness"}
    brightness = record["scores"]["example_brightness"]
    assert brightness["coverage"] == 1.0
    assert 0 < brightness["value"] < 1


def test_a_misspelt_name_is_answered_with_the_plugins(site: Path, tmp_path: Path) -> None:
    done = pnapo_bench("run", "--method", "exmaple-hinge", "--out", "out", folder=tmp_path, site=site)
    assert done.returncode == 2
    assert "unknown method 'exmaple-hinge'. Did you mean 'example-hinge'?" in done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--method", "example-hinge"], "unknown method 'example-hinge'."),
        (["--method", "pnapo-hinge"], "unknown method 'pnapo-hinge'. Did you mean 'pnapo'"),
        (["--method", "pnapo", "--set", "eval.evals=[example_brightness]"], "unknown eval 'example_brightness'."),
    ],
)
def test_without_it_the_name_is_unknown(flags: list[str], expected: str, tmp_path: Path) -> None:
    done = pnapo_bench("run", *flags, "--out", "out", folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert expected in line
    assert "Available: " in line
    assert not (tmp_path / "out").exists()
