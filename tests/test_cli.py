"""The command line as a user meets it: every method from end to end, wrong input, interruption."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pnapo_bench import cli, registry
from pnapo_bench.images import Images
from pnapo_bench.store import file_hash

SHORT = (
    "--set=data.prompts=12", "--set=data.score=shapes_quality", "--set=data.sampler.steps=3",
    "--set=train.steps=3", "--set=train.batch=4", "--set=train.checkpoint_every=1",
    "--set=eval.prompts=6", "--set=eval.noises=2", "--set=eval.sampler.steps=3",
)  # fmt: skip

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: (exit status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pnapo-bench", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all runs of this file, so that they share pairs and base evaluation."""
    return tmp_path_factory.mktemp("out")


def test_help_needs_no_heavy_import() -> None:
    heavy = "torch numpy pandas pydantic diffusers transformers scipy"
    program = (
        "import sys; sys.argv = ['pnapo-bench', '--help']\n"
        "from pnapo_bench import cli\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code\n"
        f"print('imported:', [m for m in '{heavy}'.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pairs" in done.stdout
    assert done.stdout.endswith("imported: []\n")


@pytest.mark.parametrize("method", sorted(registry.TABLES["methods"]))
def test_every_method_from_end_to_end(method: str, command: Command, out: Path) -> None:
    status, printed, _ = command("run", "--method", method, *SHORT, "--out", str(out))
    assert status == 0
    folder = Path(printed.splitlines()[-1])
    record = json.loads((folder / "record.json").read_text())
    assert record["method"] == method
    assert set(record["scores"]) == {"shapes_accuracy", "shapes_reward", "shapes_quality"}
    assert all(score["coverage"] == 1 for score in record["scores"].values())
    base, trained = (Images(folder / record["images"][which]).frame() for which in ("base", "trained"))
    assert base["noise_sha256"].equals(trained["noise_sha256"])
    if registry.get("methods", method).trains:
        assert record["training"]["steps"] == 3
        assert record["ledger"]["training"]["flops"] > 0
        assert (folder / "weights" / "diffusion_pytorch_model.safetensors").is_file()
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
        assert list(folder.glob("tensorboard/**/events*"))
    else:
        assert record["training"] is None
        assert all(score["value"] == score["base"] for score in record["scores"].values())


def test_finished_run_is_not_repeated(command: Command, out: Path) -> None:
    first = command("run", "--method", "sft", *SHORT, "--out", str(out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = command("run", "--method", "sft", *SHORT, "--out", str(out))
    assert first[0] == again[0] == 0
    assert "complete already" in again[2]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_methods_and_seeds_share_pairs_and_base_evaluation(command: Command, out: Path) -> None:
    command("run", "--method", "diffusion-dpo", *SHORT, "--seed", "1", "--out", str(out))
    command("run", "--method", "pnapo", *SHORT, "--out", str(out))
    stages = {kind: len(list((out / "store" / kind).glob("*/manifest.json"))) for kind in ("images", "pairs")}
    assert stages == {"images": 2, "pairs": 1}  # training pictures and the base model's evaluation


def test_report_of_the_runs(command: Command, out: Path, tmp_path: Path) -> None:
    runs = [
        command("run", "--method", method, *SHORT, "--out", str(out))[1].splitlines()[-1]
        for method in ("base", "pnapo")
    ]
    status, printed, _ = command("report", *runs, "--save", str(tmp_path / "report"))
    assert status == 0
    assert "pnapo" in printed
    assert "one training seed" in printed
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.md", "report.csv", "families.csv", "pictures.png",
    }  # fmt: skip


def test_pairs_commands(command: Command, tmp_path: Path) -> None:
    data = [setting for setting in SHORT if "data." in setting]
    status, printed, _ = command("pairs", "build", *data, "--out", str(tmp_path))
    assert status == 0
    folder = next(line.split()[-1] for line in printed.splitlines() if line.startswith("folder"))
    assert command("pairs", "inspect", folder)[1] == printed
    status, printed, _ = command("pairs", "verify", folder, "--regenerate", "2")
    assert status == 0
    assert "regenerated" in printed


def test_repairing_generates_no_image(command: Command, tmp_path: Path) -> None:
    data = [setting for setting in SHORT if "data." in setting]
    command("pairs", "build", *data, "--out", str(tmp_path))
    (images,) = (tmp_path / "store" / "images").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    status, _, _ = command(
        "pairs", "build", "--images", str(images), "--set=data.score=shapes_quality", "--set=data.rule=best-worst",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert status == 0
    assert len(list((tmp_path / "store" / "pairs").iterdir())) == 2
    assert before == {path.name: path.stat().st_mtime_ns for path in images.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("run --method pnpao", "Did you mean 'pnapo'"),
        ("run --method pnapo --model tinny", "Did you mean 'tiny'"),
        ("run --method pnapo --set train.stepz=3", "Did you mean train.steps"),
        ("run --method pnapo --set method.betta=3", "Did you mean method.beta"),
        ("run --method pnapo --set stepz=3", "unknown setting 'stepz'"),
        ("run --method pnapo --set train.lr=-1", "train.lr"),
        ("run --method pnapo --set train.batch=many", "train.batch"),
        ("run --method pnapo --set train.batch", "expected --set key=value"),
        ("run --method pnapo --set data.score=beauty", "unknown eval 'beauty'"),
        ("run --method pnapo --set eval.evals=[hps]", "unknown eval 'hps'"),
        ("run --method pnapo --seed -1", "--seed"),
        ("run --method pnapo --pairs nowhere", "found no manifest.json in nowhere"),
        ("run --methd pnapo", "No such option: --methd"),
        ("run", "Missing option '--method'"),
        ("report nowhere", "no finished run in nowhere"),
        ("pairs inspect nowhere", "found no manifest.json in nowhere"),
        ("list things", "unknown list 'things'"),
        ("lst", "No such command 'lst'"),
    ],
)
def test_wrong_input_is_answered_in_one_line(
    arguments: str, says: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, errors = command(*arguments.split())
    assert status == 2
    assert printed == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert says in errors
    assert not list(tmp_path.iterdir())


def test_setting_without_effect_is_named(command: Command, out: Path) -> None:
    _, _, errors = command("run", "--method", "sft", *SHORT, "--set=train.beta=7", "--out", str(out))
    assert "warning: without effect: train.beta: sft has no beta" in errors


def test_output_folder_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    status, _, errors = command("run", "--method", "base", "--out", str(tmp_path / "file" / "out"))
    assert status == 2
    assert errors.count("\n") == 1
    assert str(tmp_path / "file") in errors


def test_full_disk_leaves_nothing_half_written(command: Command, tmp_path: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))  # stands for a full disk: no file may grow further
    try:
        status, _, errors = command(
            "pairs", "build", "--set=data.prompts=12", "--set=data.sampler.steps=2", "--out", str(tmp_path)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: cannot read or write")
    assert not [
        path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".safetensors") or "manifest" in path.name
    ]


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pnapo_bench", "run", "--method", "pnapo", *SHORT, *arguments, "--out", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a shell's background jobs ignore Ctrl-C, and would pass that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not appear in {path}"
        time.sleep(0.02)


STEPS = "--set=train.steps=12"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run that nothing disturbed, and the scores that it printed."""
    process = start(tmp_path_factory.mktemp("whole"), STEPS)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "\x1b" not in errors  # no bars where there is no terminal
    *scores, folder = output.splitlines()
    return Path(folder), scores


@pytest.mark.slow
@pytest.mark.parametrize(("blow", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_run_continues_to_the_same_weights(
    blow: signal.Signals, status: int, uninterrupted: tuple[Path, list[str]], tmp_path: Path
) -> None:
    broken = start(tmp_path, STEPS)
    wait_for(tmp_path / "runs", "*/checkpoint.safetensors")
    broken.send_signal(blow)
    _, errors = broken.communicate(timeout=240)
    assert broken.returncode == status, errors
    if blow == signal.SIGINT:
        assert errors.splitlines()[-1].startswith("error: interrupted")
        assert "Traceback" not in errors
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "record.json").exists()

    continued = start(tmp_path, STEPS)
    output, errors = continued.communicate(timeout=240)
    assert continued.returncode == 0, errors
    assert output.splitlines()[:-1] == uninterrupted[1]
    weights = "weights/diffusion_pytorch_model.safetensors"
    assert file_hash(folder / weights) == file_hash(uninterrupted[0] / weights)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
