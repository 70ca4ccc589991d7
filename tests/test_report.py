from __future__ import annotations

import io
import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats as scipy_stats

from pnapo_bench import config, results, store
from pnapo_bench.errors import UserError
from pnapo_bench.report import pictures, render
from pnapo_bench.report.table import contrasts, entries, families, scoreboard
from pnapo_bench.results import Run

EVALS = ("shapes_accuracy", "shapes_reward", "shapes_quality")
GROUPS = ("single_object", "counting", "position")
PROMPTS, NOISES = 12, 2
SETTINGS = (
    f"eval.prompts={PROMPTS}",
    f"eval.noises={NOISES}",
    f"eval.evals=[{', '.join(EVALS)}]",
    "eval.sampler.steps=28",
    "data.score=shapes_reward",
    "train.steps=10",
    "train.batch=32",
)


def make_run(
    root: Path, method: str, seed: int = 0, settings: tuple[str, ...] = (), better: float = 0.05, **changes: Any
) -> Run:
    """A finished run on disk; ``changes`` replace parts of its record."""
    resolved = config.resolve(method, "tiny", seed, [*SETTINGS, *settings]).model_dump(mode="json")
    trained = method != "base"
    number = len(list(root.glob("runs/*")))
    folder = root / "runs" / f"{method}-tiny-s{seed}-{number}"
    folder.mkdir(parents=True)
    table = make_scores(resolved["eval"]["evals"], seed, better if trained else 0.0)
    table.to_parquet(folder / "scores.parquet", index=False)
    training = {"steps": 10, "winner_drift": 1.2 + seed, "alarms": []} if trained else None
    stages = {"training": (60.0, 3e12), "reference": (20.0, 1e12)} if trained else {}
    stages |= {"images": (100.0, 5e12), "evaluation": (7.0, 2e12)}
    record = {
        "schema_version": results.SCHEMA_VERSION,
        "run": folder.name,
        "method": method,
        "model": "tiny",
        "revision": "weights-1",
        "seed": seed,
        "config": resolved,
        "data": {"folder": "pairs-1", "pairs": 5} if trained else None,
        "training": training,
        "scores": {name: {"version": "1"} for name in resolved["eval"]["evals"]},
        "images": {"base": "../../base", "trained": "evaluation" if trained else "../../base"},
        "ledger": {name: {"seconds": s, "flops": f} for name, (s, f) in stages.items()},
        "versions": {"python": "3.11.9", "torch": "2.12.0"},
        "hardware": {"cpu": "a cpu", "cores": 2},
        "git": "abc123",
    }
    results.write(folder, record | changes)
    return results.read(folder)


def make_scores(evals: list[str], seed: int, better: float) -> pd.DataFrame:
    rng = np.random.default_rng(7)  # base scores are those of one model
    trained = np.random.default_rng(100 + seed)
    rows = []
    for scorer in evals:
        for item in range(PROMPTS):
            for noise in range(NOISES):
                base = rng.normal(0.5, 0.1)
                value = base + (better + trained.normal(0, 0.02) if better else 0.0)
                if scorer == "shapes_accuracy":
                    base, value = float(base > 0.5), float(value > 0.5)
                rows.append(
                    {
                        "item": item,
                        "noise": noise,
                        "prompt": f"a photo of thing {item}",
                        "group": GROUPS[item % len(GROUPS)],
                        "seed": item * 10 + noise,
                        "noise_sha256": f"{item}-{noise}",
                        "scorer": scorer,
                        "version": "1",
                        "base": np.float32(base),
                        "value": np.float32(value),
                    }
                )
    table = pd.DataFrame(rows)
    return table.assign(difference=table["value"] - table["base"])


def colour_of(item: int, shade: int) -> tuple[int, int, int]:
    return (item * 20, shade, 255 - item * 20)


def make_images(folder: Path, shade: int, size: tuple[int, int] = (48, 48)) -> None:
    """A complete image folder: plain pictures whose colour tells the item and the model."""
    folder.mkdir(parents=True)
    rows = []
    for item in range(PROMPTS):
        for noise in range(NOISES):
            file = io.BytesIO()
            Image.new("RGB", size, colour_of(item, shade + 100 * noise)).save(file, "PNG")
            rows.append({"item": item, "noise": noise, "prompt": f"a photo of thing {item}", "png": file.getvalue()})
    pd.DataFrame(rows).to_parquet(folder / "images-00000.parquet", index=False)
    manifest = {
        "kind": "images",
        "shards": 1,
        "files": {"images-00000.parquet": store.file_hash(folder / "images-00000.parquet")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def printed(runs: list[Run], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    render.print_report(runs, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---------------------------------------------------------------------------------------------- the table


def test_rows_and_their_order(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "pnapo", seed) for seed in (2, 0, 1)]
    runs += [make_run(tmp_path, "sft"), make_run(tmp_path, "base"), make_run(tmp_path, "base", seed=1)]
    rows = entries(runs)
    assert [row.name for row in rows] == ["base", "sft", "pnapo"]
    assert [run.record["seed"] for run in rows[2].runs] == [0, 1, 2]
    assert scoreboard(entries(runs))["seeds"].tolist() == [1, 1, 3]


def test_numbers_are_those_of_the_scores(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "base"), make_run(tmp_path, "pnapo")]
    board = scoreboard(entries(runs)).set_index("method")
    scores = runs[1].scores.query("scorer == 'shapes_reward'")
    assert board.at["base", "shapes_reward.mean"] == pytest.approx(scores["base"].mean())
    for column, name in (("value", "shapes_reward."), ("difference", "shapes_reward.difference_")):
        prompts = scores.groupby("item")[column].mean().astype(float)
        low, high = scipy_stats.t.interval(0.95, PROMPTS - 1, prompts.mean(), scipy_stats.sem(prompts))
        assert [board.at["pnapo", f"{name}{end}"] for end in ("low", "high")] == pytest.approx([low, high])
    assert board.at["pnapo", "shapes_reward.difference"] == pytest.approx(scores["difference"].mean())
    wins = runs[1].scores.query("scorer == 'shapes_accuracy'")["difference"]
    assert board.at["pnapo", "shapes_accuracy.win_rate"] == pytest.approx((wins > 0).mean() + (wins == 0).mean() / 2)
    assert [board.at["base", f"shapes_reward.{what}"] for what in ("difference", "win_rate")] == [0, 0.5]


def test_costs_and_drift_are_means_over_seeds(tmp_path: Path) -> None:
    board = scoreboard(
        entries([make_run(tmp_path, "pnapo", 0), make_run(tmp_path, "pnapo", 1), make_run(tmp_path, "base")])
    )
    base, pnapo = board.to_dict("records")
    assert pnapo["pairs_seen"] == 10 * 32
    assert pnapo["winner_drift"] == pytest.approx(1.7)
    assert (pnapo["train_flops"], pnapo["total_flops"]) == (4e12, 11e12)
    assert (pnapo["train_seconds"], pnapo["total_seconds"]) == (80, 187)
    assert (base["pairs_seen"], base["train_flops"], base["total_seconds"]) == (0, 0, 107)
    assert np.isnan(base["winner_drift"])


def test_several_settings_of_a_method_are_several_rows(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "pnapo", seed, (f"method.beta={beta}",)) for beta in (500, 900) for seed in (0, 1)]
    assert [row.name for row in entries(runs)] == [
        "pnapo (method_config.beta=500.0)",
        "pnapo (method_config.beta=900.0)",
    ]
    assert scoreboard(entries(runs))["seeds"].tolist() == [2, 2]


def test_other_pairs_are_another_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "pnapo"), make_run(tmp_path, "pnapo", data={"folder": "pairs-2"})]
    assert [row.name for row in entries(runs)] == ["pnapo (pairs=pairs-1)", "pnapo (pairs=pairs-2)"]


def test_groups(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo")
    found = families(entries([run])).set_index("method")
    assert list(found.columns) == [f"{scorer}.{group}" for scorer in EVALS for group in GROUPS]
    means = run.scores.groupby(["scorer", "group"])["value"].mean()
    assert found.at["pnapo", "shapes_quality.counting"] == pytest.approx(means["shapes_quality", "counting"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"revision": "weights-2"}, r"model revision \('weights-1' and 'weights-2'\)"),
        ({"scores": {name: {"version": "2"} for name in EVALS}}, r"version of shapes_accuracy \('1' and '2'\)"),
        ({"settings": ("eval.sampler.steps=5",)}, r"eval.sampler.steps \(28 and 5\)"),
    ],
)
def test_runs_measured_differently_share_no_table(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"differ in {said}.*report them apart"):
        scoreboard(entries([make_run(tmp_path, "sft"), make_run(tmp_path, "pnapo", **change)]))


def test_a_run_named_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo")
    with pytest.raises(UserError, match="are one run"):
        scoreboard(entries([run, run]))


def test_other_noises_are_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "sft"), make_run(tmp_path, "pnapo")]
    runs[1].scores.assign(noise_sha256="other").to_parquet(runs[1].folder / "scores.parquet", index=False)
    with pytest.raises(UserError, match="other evaluation prompts or noises"):
        scoreboard(entries(runs))


def test_missing_scores_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo")
    scores = run.scores
    scores.loc[3, "value"] = np.nan
    scores.to_parquet(run.folder / "scores.parquet", index=False)
    with pytest.raises(UserError, match=r"^1 of 72 scores of .* are missing"):
        scoreboard(entries([run]))


def test_one_prompt_and_no_runs_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo")
    run.scores.query("item == 0").to_parquet(run.folder / "scores.parquet", index=False)
    with pytest.raises(UserError, match="one prompt"):
        scoreboard(entries([run]))
    with pytest.raises(UserError, match="got none"):
        scoreboard(entries([]))


# ---------------------------------------------------------------------------------------------- the report


def test_numbers_as_text() -> None:
    assert render.interval(0.6124, 0.58, 0.64) == "0.612 [0.580, 0.640]"
    assert render.interval(9.9, -1, 10.2, sign="+") == "+9.90 [-1.00, +10.20]"
    assert render.percent(0.5, 0.25, 1) == "50.0 % [25.0, 100.0]"
    assert [render.flops(x) for x in (0, 12, 3.1e12, 2e15)] == ["0 FLOP", "12 FLOP", "3.1 TFLOP", "2 PFLOP"]
    assert [render.seconds(x) for x in (84.2, 750, 11160)] == ["84 s", "12.5 min", "3.1 h"]


def test_one_seed_says_so(tmp_path: Path) -> None:
    one = make_run(tmp_path, "pnapo")
    assert "- one training seed: the interval covers prompts only" in printed([one])
    several = [make_run(tmp_path, "sft", seed) for seed in (0, 1)]
    assert "one training seed" not in printed(several)
    assert "- pnapo: one training seed" in printed([one, *several])


def test_every_line_fits(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, m) for m in ("base", "diffusion-dpo-independent", "sft", "pnapo", "pnapo-fixed-beta")]
    runs += [make_run(tmp_path, "pnapo", settings=("method.beta=500", "train.lr=1e-5"))]
    text = printed(runs)
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text


def test_alarms_and_over_optimisation_are_warnings(tmp_path: Path) -> None:
    alarmed = make_run(tmp_path, "sft", training={"steps": 10, "winner_drift": None, "alarms": ["step 9: [bold] bad"]})
    gamed = make_run(tmp_path, "pnapo")
    scores = gamed.scores
    fell = scores["scorer"] == "shapes_quality"
    scores.loc[fell, "value"] = scores.loc[fell, "base"] - scores.loc[fell, "item"].astype("float32") / 100 - 0.01
    scores["difference"] = scores["value"] - scores["base"]
    scores.to_parquet(gamed.folder / "scores.parquet", index=False)
    text = " ".join(printed([alarmed, gamed]).split())
    assert "warning: sft, seed 0: step 9: [bold] bad" in text
    assert "warning: pnapo: over-optimised: shapes_reward, by which its pairs were labelled, improved by +0.0" in text
    assert "but shapes_quality got worse by -0.0" in text
    assert "sft: over-optimised" not in text


def test_unequal_training_is_a_warning(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "sft")]
    runs.append(make_run(tmp_path, "pnapo", training={"steps": 20, "winner_drift": 1.0, "alarms": []}))
    assert "not matched: the methods saw from 320 to 640 pairs" in printed(runs)


def test_files_show_the_same_numbers(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "base"), make_run(tmp_path, "pnapo", settings=("method.beta=500",))]
    folder = tmp_path / "report"
    render.write_report(runs, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["families.csv", "report.csv", "report.md"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "report.csv"), scoreboard(entries(runs)))
    pd.testing.assert_frame_equal(pd.read_csv(folder / "families.csv"), families(entries(runs)))
    text = (folder / "report.md").read_text()
    board = scoreboard(entries(runs)).set_index("method").loc["pnapo"]
    mean = render.interval(*board[["shapes_reward.mean", "shapes_reward.low", "shapes_reward.high"]])
    assert mean in text
    assert mean in printed(runs)
    assert "pnapo-bench run --method pnapo --model tiny --seed 0 --set method.beta=500.0 " in text
    assert "one training seed" in text
    assert "python 3.11.9, torch 2.12.0" in text
    assert "image folders of these runs are missing" in text


def test_a_command_repeats_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo", 3, ("method.beta=500", "eval.evals=[shapes_reward]", "train.betas=[0.8, 0.9]"))
    words = shlex.split(render.command(run))
    settings = [word for flag, word in pairwise(words) if flag == "--set"]
    assert config.resolve("pnapo", "tiny", 3, settings).model_dump(mode="json") == run.record["config"]


def test_markdown_escapes_cells() -> None:
    sheet = render.Sheet("a <b>", ("method",), [("x|y",)])
    assert render._sheet_markdown(sheet) == "## a &lt;b&gt;\n\n| method |\n| --- |\n| x\\|y |"


# ---------------------------------------------------------------------------------------------- pictures


def test_the_grid_shows_the_pictures(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "base"), make_run(tmp_path, "pnapo", 1), make_run(tmp_path, "pnapo", 0)]
    make_images(tmp_path / "base", shade=10)
    make_images(runs[2].folder / "evaluation", shade=90)
    folder = tmp_path / "report"
    render.write_report(runs, folder)
    assert "![The same prompts and noises under every method](pictures.png)" in (folder / "report.md").read_text()
    picture = Image.open(folder / "pictures.png")
    cell = pictures.TILE + 2 * pictures.FRAME + pictures.GAP
    items = [0, 3, 1, 4, 2, 5]  # two of each group, groups in turn
    assert picture.width == pictures.LABEL + 2 * cell + pictures.GAP
    head = picture.height - len(items) * cell - 2 * pictures.GAP
    assert 0 < head < 60
    scores = runs[2].scores.query("scorer == 'shapes_accuracy' and noise == 0").set_index("item")
    for row, item in enumerate(items):
        top = head + 2 * pictures.GAP + row * cell
        for column, (shade, values) in enumerate([(10, "base"), (90, "value")]):
            left = pictures.LABEL + column * cell
            tile = picture.crop((left + 4, top + 4, left + 4 + pictures.TILE, top + 4 + pictures.TILE))
            assert tile.getcolors() == [(pictures.TILE**2, colour_of(item, shade))]
            frame = pictures.PASSED if scores.at[item, values] == 1 else pictures.FAILED
            assert picture.getpixel((left, top)) == frame


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo")
    make_images(tmp_path / "base", 10, size=(512, 256))
    make_images(run.folder / "evaluation", 90, size=(512, 256))
    picture = pictures.grid(entries([run]))
    assert picture is not None
    assert picture.width == pictures.LABEL + 2 * (192 + 2 * pictures.FRAME + pictures.GAP) + pictures.GAP
    assert picture.height < 6 * (96 + 2 * pictures.FRAME + pictures.GAP) + 100


def test_missing_images_give_no_grid(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo")
    make_images(tmp_path / "base", shade=10)
    assert pictures.grid(entries([run])) is None


def test_altered_images_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "pnapo")
    make_images(tmp_path / "base", shade=10)
    make_images(run.folder / "evaluation", shade=90)
    (run.folder / "evaluation" / "images-00000.parquet").write_bytes(b"other")
    with pytest.raises(UserError):
        pictures.grid(entries([run]))


def test_methods_against_each_other_share_seeds_prompts_and_noises(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "sft", seed, better=0.1) for seed in (0, 1)]
    runs += [make_run(tmp_path, "pnapo", seed, better=0.3) for seed in (1, 2)]
    (contrast,) = contrasts(entries(runs), "shapes_reward")
    assert contrast[:2] == ("sft", "pnapo")
    assert contrast[2].seeds == 1  # seed 1 is the only one that both have
    a, b = (run.scores.query("scorer == 'shapes_reward'")["value"].mean() for run in (runs[1], runs[2]))
    assert contrast[2].mean == pytest.approx(a - b, abs=1e-6)
    assert "shapes_accuracy, method against method" in printed(runs)
    assert "method against method" not in printed(runs[:2])
