from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.engine.plan import RunPlan
from ted_stream.methods import InfoBatch, OrderDP, RandomPruning, SeTa
from ted_stream.pipelines.benches.methods.execute import execute
from ted_stream.pipelines.benches.methods.results import read_outcomes, write_outcomes
from ted_stream.pipelines.benches.methods.run import Outcome
from ted_stream.pipelines.benches.methods.savings import MOST, Search, planned_prune_ratio
from ted_stream.pipelines.benches.methods.sweep import FULL, RANDOM, SHORTER, load_sweep, runs_of
from ted_stream.pipelines.benches.methods.tables import markdown, seconds_to
from ted_stream.pipelines.training.settings import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("bench_*.yaml"))
TRAIN = """
train:
  data: {batch_size: 64}
  model: {name: convnet, channels: [8, 16]}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
  scheduler: {name: onecycle}
"""


def sweep_file(folder: Path, source: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(f"source: {source}\n{text}{'' if 'train:' in text else TRAIN}")
    return path


# The saving that is asked for


@pytest.mark.parametrize("make", [RandomPruning, OrderDP], ids=lambda make: make.__name__)
@pytest.mark.parametrize("saving", [0.2, 0.5])
def test_planned_savings_are_reached(make: Any, saving: float) -> None:
    ratio = planned_prune_ratio(make, saving, num_samples=10_000, epochs=30)
    assert ratio is not None
    kept = [round(make(ratio).keep_ratio(epoch, 30) * 10_000) for epoch in range(30)]
    assert 1 - sum(kept) / 300_000 == pytest.approx(saving, abs=1e-3)


@pytest.mark.parametrize("saving", [0.2, 0.5])
def test_planned_savings_count_whole_batches_alone(saving: float) -> None:
    """Of full data too, which leaves 100 samples out in every epoch."""
    ratio = planned_prune_ratio(RandomPruning, saving, num_samples=1124, epochs=30, whole_batches=128)
    assert ratio is not None
    plan = RunPlan(method=RandomPruning(ratio), num_samples=1124, epochs=30)
    batches = [count // 128 for count in plan.forecast({})]
    assert min(batches) < max(batches) == 8
    assert saving <= 1 - 128 * sum(batches) / 30_720 < saving + 0.01


def test_methods_with_their_own_counts_are_not_planned() -> None:
    for make in (InfoBatch, SeTa):
        assert planned_prune_ratio(make, 0.3, num_samples=1000, epochs=30) is None


def test_a_saving_out_of_reach_is_said() -> None:
    with pytest.raises(ValueError, match=r"saves 0\.\d+ at most in 2 epochs, not 0\.95"):
        planned_prune_ratio(RandomPruning, 0.95, num_samples=1000, epochs=2)


@pytest.mark.parametrize("law", [lambda r: 0.6 * r, lambda r: 0.7 * r**2, lambda r: 0.9 * r / (1 + r)])
def test_a_search_finds_what_saves_so_much(law: Any) -> None:
    search, tries = Search(0.3, 0.3), 1
    while not search.is_over(law(search.ratio)):
        tries += 1
    assert law(search.ratio) == pytest.approx(0.3, abs=0.01)
    assert tries <= 5


def test_a_search_gives_up_at_the_most_that_there_is() -> None:
    search = Search(0.5, 0.5)
    while not search.is_over(0.3 * search.ratio):
        pass
    assert search.ratio == MOST


# What is to be run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_sweep_loads(path: Path, digits: Path, tmp_path: Path) -> None:
    source = next(line for line in path.read_text().splitlines() if line.startswith("source: "))
    (tmp_path / "sweep.yaml").write_text(path.read_text().replace(source, f"source: {digits}"))
    sweep = load_sweep(tmp_path / "sweep.yaml")
    runs = list(runs_of(sweep))
    groups = sweep.seeds * len(sweep.regimes) * len(sweep.epochs)
    assert len(runs) == groups * (1 + len(sweep.savings) * (1 + len(sweep.arms)))
    assert len({run.key for run in runs}) == len(runs)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arms: {ted: {method: ted}}", "arms needs random: {method: random}"),
        ("arms: {random: {method: random, prune_ratio: 0.5}}", r"arms\.random: prune_ratio is found by the saving"),
        ("arms: {random: {method: random}, a: {method: tde}}", r"arms\.a: no method 'tde'"),
        ("arms: {random: {method: random}, a: {score: ted}}", r"arms\.a: no method 'ted'"),
        ("savings: [30]\narms: {random: {method: random}}", "savings has 30"),
        ("regimes: {bad: {noise: 2}}\narms: {random: {method: random}}", r"regimes\.bad: noise is 2"),
        ("regimes: {bad: {nosie: 0.2}}\narms: {random: {method: random}}", r"regimes\.bad: .*nosie"),
        ("seeds: 0\narms: {random: {method: random}}", "seeds is 0"),
        ("arms: {random: {method: random}}\ntrain: {trainer: composer}", r"train\.trainer: that is the sweep's own"),
        ("lengths: 3\narms: {random: {method: random}}", "lengths"),
    ],
)
def test_wrong_sweeps_are_refused(text: str, words: str, digits: Path, tmp_path: Path) -> None:
    epochs = "epochs: [4]\n" + ("" if "savings" in text else "savings: [0.5]\n")
    with pytest.raises(ConfigError, match=words):
        load_sweep(sweep_file(tmp_path, digits, epochs + text))


# What comes of it


def outcome(arm: str, seed: int, accuracy: float, **given: Any) -> Outcome:
    of_all = {"regime": "clean", "epochs": 30, "saving": 0.5, "prune_ratio": 0.7, "save_ratio": 0.5, "solved": True}
    measured = {"worst_class": 0.5, "cross_entropy": 1.0, "forwarded": 10, "steps": 5, "seconds": 2.0}
    others = {"boundary_seconds": 0.1, "scoring_seconds": 0.0, "returning": 0.4, "curve": [1.0, 0.5]}
    return Outcome(
        key=f"{arm}{seed}", arm=arm, seed=seed, accuracy=accuracy, **{**of_all, **measured, **others, **given}
    )


def test_tables_pair_by_seed_and_name_what_was_missed() -> None:
    found = [
        *(outcome(RANDOM, seed, accuracy) for seed, accuracy in enumerate((0.50, 0.60, 0.70))),
        *(outcome(SHORTER, seed, accuracy) for seed, accuracy in enumerate((0.51, 0.61, 0.71))),
        *(outcome("ours", seed, accuracy) for seed, accuracy in enumerate((0.52, 0.63, 0.71))),
        *(outcome(FULL, seed, 0.8, saving=float("nan"), seconds=4.0, returning=float("nan")) for seed in range(3)),
        outcome("greedy", 0, 0.4, save_ratio=0.3, solved=False, prune_ratio=0.999, scoring_seconds=1.0),
    ]
    rows = [line.split(" | ") for line in markdown(found).split("##")[1].splitlines() if "|" in line]
    lines = {row[0].strip("| "): row for row in rows}
    ours = lines["ours"]
    assert ours[1:5] == ["3", "62.00 ± 9.54", "+2.00 ± 2.48", "+1.00 ± 2.48"]  # t(2) = 4.303, sd 1, n 3
    assert lines[FULL][8] == "1.00"
    assert ours[8] == "0.50"
    assert lines["greedy"][8] == "0.50 + 0.25"
    assert "Not at the saving asked for: greedy (0.300 at prune_ratio 0.999)." in markdown(found)


def test_time_to_full_datas_accuracy() -> None:
    runs = [
        outcome("a", 0, 0.6, curve=[1.0, 0.4, 2.0, 0.55, 3.0, 0.6], scoring_seconds=0.5),
        outcome("a", 0, 0.7, curve=[1.5, 0.5, 4.0, 0.7]),
    ]
    assert seconds_to(0.5, runs) == 1.5
    assert seconds_to(0.6, runs) == 3.5
    assert seconds_to(0.65, runs) == 4.0
    assert np.isnan(seconds_to(0.71, runs))
    full = [outcome(FULL, seed, 0.6, saving=float("nan"), seconds=7.0, curve=[7.0, 0.6]) for seed in (0, 1)]
    text = markdown([*full, *runs, outcome("a", 1, 0.59, curve=[3.0, 0.59])])
    assert "| a | 1 of 2 | 0.50 |" in text
    assert f"| {FULL} | 2 of 2 | 1.00 ± 0.00 |" in text


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = [outcome("a", 0, 0.5), outcome("b", 1, 0.25, curve=[])]
    write_outcomes(tmp_path / "results.parquet", found)
    assert read_outcomes(tmp_path / "results.parquet") == found
    assert read_outcomes(tmp_path / "missing.parquet") == []


ARMS = """
epochs: [4]
savings: [0.4]
seeds: 1
regimes: {noisy: {noise: 0.2}}
samples: 600
arms:
  random: {method: random}
  batches: {method: infobatch}
  subset: {score: el2n, max_duration: 1ep}
"""


@pytest.mark.long
def test_a_sweep_goes_on_where_it_stopped(digits: Path, tmp_path: Path) -> None:
    path, out = sweep_file(tmp_path, digits, ARMS), tmp_path / "out"
    result = CliRunner().invoke(app, ["bench", "methods", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = {row["arm"]: row for row in pq.read_table(out / "results.parquet").to_pylist()}
    assert set(rows) == {FULL, SHORTER, "random", "batches", "subset"}
    assert rows["random"]["save_ratio"] == pytest.approx(0.4, abs=0.01)
    assert rows["subset"]["save_ratio"] == pytest.approx(0.4, abs=0.01)
    assert rows["subset"]["scoring_seconds"] > 0
    assert rows[SHORTER]["steps"] == rows["random"]["steps"]
    assert rows[FULL]["forwarded"] == 4 * 600
    # Of those that decide on their own counts, the nearest is told as what it is.
    assert rows["batches"]["solved"] == (abs(rows["batches"]["save_ratio"] - 0.4) <= 0.0101)
    for name in ("noisy-4ep-saving.png", "noisy-4ep-time.png"):
        with Image.open(out / name) as image:
            assert len(np.unique(np.asarray(image))) > 10
    kept = read_outcomes(out / "results.parquet")
    marked = replace(kept[0], accuracy=0.123)
    write_outcomes(out / "results.parquet", [marked, *kept[2:]])
    again = CliRunner().invoke(app, ["bench", "methods", str(path), "--out", str(out)])
    assert again.exit_code == 0, again.output
    after = {one.key: one for one in read_outcomes(out / "results.parquet")}
    assert len(after) == len(kept)
    assert repr(after[marked.key]) == repr(marked)  # not run again
    timeless = {"seconds": 0, "boundary_seconds": 0, "scoring_seconds": 0, "curve": []}
    assert repr(replace(after[kept[1].key], **timeless)) == repr(replace(kept[1], **timeless))
    assert "12.30" in again.output


def test_one_sweep_at_a_time_in_a_folder(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".sweep.lock"), pytest.raises(ConfigError, match="another sweep is at work"):
        execute(load_sweep(sweep_file(tmp_path, digits, ARMS)), tmp_path / "out", processes=1)


@pytest.mark.long
def test_names_are_those_of_the_file(digits: Path, tmp_path: Path) -> None:
    """Results are known by what was run: an arm of another name is the same run."""
    arms = "arms:\n  random: {method: random}\n  NAME: {method: ucb}\n"
    text = f"epochs: [3]\nsavings: [0.3]\nseeds: 1\nsamples: 200\n{arms}"
    out = tmp_path / "out"
    first, _ = execute(load_sweep(sweep_file(tmp_path, digits, text.replace("NAME", "a"))), out, processes=1)
    left: list[int] = []
    again, _ = execute(
        load_sweep(sweep_file(tmp_path, digits, text.replace("NAME", "b"))), out, processes=1, planned=left.append
    )
    assert left == [0]
    assert [one.arm for one in again] == [FULL, SHORTER, "random", "b"]
    assert [one.accuracy for one in again] == [one.accuracy for one in first]


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("{method: ucb, alhpa: 0.5}", r"batches, 4 epochs, saving 0\.4: .*alhpa"),
        ("{method: infobatch, progress: samples}", r"batches, .*progress is 'samples', but InfoBatch"),
        ("{method: random, annealing: 0.75}", r"batches, .*saves 0\.\d+ at most in 4 epochs, not 0\.4"),
        ("{score: craig, stratum: 3}", r"batches, .*stratum"),
    ],
)
def test_arms_that_cannot_be_run_are_refused_before_any_is(digits: Path, tmp_path: Path, arm: str, words: str) -> None:
    path = sweep_file(tmp_path, digits, ARMS.replace("{method: infobatch}", arm))
    with pytest.raises(ConfigError, match=words):
        execute(load_sweep(path), tmp_path / "out", processes=1)
    assert not (tmp_path / "out" / "results.parquet").exists()


@pytest.mark.long
def test_runs_that_fail_are_told_and_the_others_go_on(digits: Path, tmp_path: Path) -> None:
    text = ARMS.replace("{method: infobatch}", "{method: learnability, reference: nowhere.parquet}")
    path, out = sweep_file(tmp_path, digits, text), tmp_path / "out"
    result = CliRunner().invoke(app, ["bench", "methods", str(path), "--out", str(out)])
    assert result.exit_code == 1
    assert "of the runs 1 failed, among them batches (There is no file 'nowhere" in result.output
    assert {one.arm for one in read_outcomes(out / "results.parquet")} == {FULL, SHORTER, "random", "subset"}
