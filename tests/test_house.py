"""The project's own order: what is packaged, what the README says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from pnapo_bench import registry
from pnapo_bench.report import render

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("methods", "evals", "configs")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.split()


@pytest.mark.slow
def test_wheel_holds_every_tracked_file_of_the_package_and_nothing_else(tmp_path: Path) -> None:
    files = [name for name in tracked() if name.split("/")[0] in ("pnapo_bench", *OUTSIDE)]
    source = tmp_path / "source"
    for name in [*files, "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"pnapo_bench/{name}" if name.split("/")[0] in OUTSIDE else name for name in files}
    assert packed == expected


@pytest.mark.parametrize("name", OUTSIDE[:2])
def test_folders_beside_the_package_are_importable_under_one_name_only(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"import pnapo_bench.{name}, not {name}" in done.stderr


def test_readme_lists_every_method_and_eval() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in (*registry.TABLES["methods"], *registry.TABLES["evals"]):
        assert f"`{name}`" in readme, name


def test_readmes_first_result_is_that_of_the_committed_report() -> None:
    readme = (ROOT / "README.md").read_text()
    board = {row["method"]: row for row in pd.read_csv(ROOT / "results/demo/report.csv").to_dict("records")}
    for method in ("sft", "diffusion-dpo", "pnapo"):
        cells = [f"`{method}`"]
        for scorer in ("shapes_accuracy", "shapes_reward"):
            mean, low, high = (float(board[method][f"{scorer}.difference{end}"]) for end in ("", "_low", "_high"))
            cells.append(render.interval(mean, low, high, sign="+"))
        assert f"| {' | '.join(cells)} |" in readme
    commits = {json.loads(path.read_text())["git"] for path in (ROOT / "results/demo/records").glob("*.json")}
    assert len(commits) == 1
    assert "+changes" not in commits.pop()


def test_readme_tree_names_files_that_exist() -> None:
    tree = (ROOT / "README.md").read_text().partition("```tree")[2].partition("```")[0]
    folders: list[str] = []
    seen = 0
    for line in tree.splitlines():
        match = re.match(r"( *)(\S+)", line)
        if not match:
            continue
        folders = folders[: len(match[1]) // 2]
        path = ROOT.joinpath(*folders, match[2])
        assert path.exists(), path
        seen += 1
        if match[2].endswith("/"):
            folders.append(match[2])
    assert seen > 30


def test_every_registered_file_is_one_method_or_eval() -> None:
    for kind, folder in (("methods", "methods"), ("evals", "evals")):
        files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
        targets = {target.partition(":")[0].rpartition(".")[2] for target in registry.TABLES[kind].values()}  # type: ignore[index]
        assert files == targets
