"""Scoring that is killed within a pass and goes on, to the bit; and on two ranks as on one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scoring import METHOD_SETTINGS, QUICKSTART, SMALL
from sklearn.datasets import load_digits

from ted_stream.export.scores import read_scores
from ted_stream.pipelines.corpora.images import write_images
from ted_stream.pipelines.corpora.prepared import new_dataset
from ted_stream.pipelines.training.score import score
from ted_stream.pipelines.training.score_settings import load_scoring
from ted_stream.pipelines.training.settings import ConfigError
from ted_stream.skip_list import read_skip_list
from ted_stream.testing.processes import run_to_the_end

EVEN = {"train": slice(0, 1024), "test": slice(1024, 1280)}
KILLED = Path(__file__).with_name("killed_scoring.py")
Overrides = Callable[..., list[str]]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in a number that ranks share without repeats."""
    out = tmp_path_factory.mktemp("even") / "digits"
    digits: Any = load_digits()
    splits = {name: (digits.images[rows].astype(np.uint8), digits.target[rows]) for name, rows in EVEN.items()}
    with new_dataset(out) as folder:
        classes = [str(digit) for digit in range(10)]
        write_images(folder, splits, name="digits", classes=classes, size_limit=1 << 14, seed=0, notes={})
    return out


@pytest.fixture
def overrides(digits: Path, tmp_path: Path) -> Overrides:
    """A function that makes a small run's overrides, of a name, a method and more overrides."""

    def make(name: str, method: str, *more: str) -> list[str]:
        own = [f"method={method}", *METHOD_SETTINGS.get(method, [])]
        places = [f"data.path={digits}", f"folder={tmp_path / name}"]
        return [*SMALL, *places, *own, "save_interval=1ep", "data.augment=crop_flip", *more]

    return make


def command(*words: object, ranks: int = 1) -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    run_to_the_end([*launcher, *map(str, words)], variables, 300)


def outcome(folder: Path) -> tuple[str, str | None]:
    path = folder / "skip_list.parquet"
    return read_scores(folder / "scores.parquet").digest, read_skip_list(path).digest if path.exists() else None


CASES: dict[str, tuple[str, list[str], int]] = {
    "within the pass": ("grand", ["prune_ratio=0.5"], 10),
    "within the second of three passes": ("tdds", [], 40),
    "within the third of three passes": ("tdds", [], 70),
    "in the second fold": ("reference", [], 40),
    "in the second of two runs": ("el2n", ["runs=2"], 45),
    "a set with weights": ("craig", ["prune_ratio=0.8"], 31),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_bit(case: str, overrides: Overrides, tmp_path: Path) -> None:
    method, more, die_at = CASES[case]
    torch.set_num_threads(1)
    score(load_scoring(QUICKSTART, overrides("lived", method, *more)))
    with pytest.raises(AssertionError, match="exit status -9"):
        command(KILLED, die_at, QUICKSTART, *overrides("killed", method, *more))
    part = tmp_path / "killed"
    assert not (part / "scores.parquet").exists()
    marks = list(part.glob("scoring/*/pass-*/done-*"))
    assert marks
    times = {mark: mark.stat().st_mtime_ns for mark in marks}
    on = overrides("killed", method, *more, "autoresume=true", "keep_vectors=true")
    result = score(load_scoring(QUICKSTART, on))
    assert result is not None
    assert outcome(part) == outcome(tmp_path / "lived")
    kept = [mark for mark in marks if mark.exists()]
    assert all(mark.stat().st_mtime_ns == times[mark] for mark in kept), "a chunk that was done was done again"
    assert kept or "second of three" in case  # passes before the last are removed
    # And once more, when all is over.
    score(load_scoring(QUICKSTART, on))
    assert outcome(part) == outcome(tmp_path / "lived")


@pytest.mark.long
def test_goes_on_from_a_checkpoint_before_passes_that_are_over(overrides: Overrides, tmp_path: Path) -> None:
    common = ["keep_vectors=true"]
    score(load_scoring(QUICKSTART, overrides("run", "tdds", *common)))
    expected, folder = outcome(tmp_path / "run"), tmp_path / "run"
    (folder / "scores.parquet").unlink()
    newest = folder / "checkpoints" / "newest"
    newest.write_text(next((folder / "checkpoints").glob("ep1-*.pt")).name)
    score(load_scoring(QUICKSTART, overrides("run", "tdds", *common, "autoresume=true")))
    assert outcome(folder) == expected


@pytest.mark.long
def test_passes_that_are_missing_are_not_made_up(overrides: Overrides, tmp_path: Path) -> None:
    score(load_scoring(QUICKSTART, overrides("run", "tdds")))
    (tmp_path / "run" / "scores.parquet").unlink()  # and the passes are gone, as they are removed in the end
    with pytest.raises(ConfigError, match=r"TDDS needs a pass after every epoch, .* after epoch 3 with passes up to 0"):
        score(load_scoring(QUICKSTART, overrides("run", "tdds", "autoresume=true")))


@pytest.mark.long
def test_a_trajectory_goes_on_to_the_bit(overrides: Overrides, tmp_path: Path) -> None:
    score(load_scoring(QUICKSTART, overrides("whole", "forgetting")))
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    (part / "scores.parquet").unlink()
    (part / "checkpoints" / "newest").write_text(next((part / "checkpoints").glob("ep1-*.pt")).name)
    score(load_scoring(QUICKSTART, overrides("part", "forgetting", "autoresume=true")))
    assert outcome(part) == outcome(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("method", ["el2n", "tdds", "forgetting", "reference", "craig"])
def test_two_ranks(method: str, overrides: Overrides, even: Path, tmp_path: Path) -> None:
    """Up to the rounding of gradients that are summed in another order."""
    more = ["model.batch_norm=false", "data.augment=none", "prune_ratio=0.5", f"data.path={even}"]
    words = ["-m", "ted_stream.cli", "score", QUICKSTART]
    command(*words, *overrides("two", method, *more, "data.eval_batch_size=128"), ranks=2)
    score(load_scoring(QUICKSTART, overrides("one", method, *more)))
    one, two = (read_scores(tmp_path / name / "scores.parquet") for name in ("one", "two"))
    assert two.labels is not None
    assert one.labels is not None
    assert two.labels.tolist() == one.labels.tolist()
    assert read_skip_list(tmp_path / "two" / "skip_list.parquet").num_kept == 512
    close = np.isclose(two.scores, one.scores, rtol=1e-3, atol=1e-4)
    assert close.mean() > 0.99


@pytest.mark.long
def test_two_ranks_score_a_checkpoint_as_one_to_the_bit(overrides: Overrides, tmp_path: Path) -> None:
    score(load_scoring(QUICKSTART, overrides("trained", "el2n")))
    path = next((tmp_path / "trained" / "checkpoints").glob("ep2-*.pt"))
    given = [f"checkpoint={path}", "prune_ratio=0.3", "balance=sqrt"]
    score(load_scoring(QUICKSTART, overrides("one", "reference", *given)))
    words = ["-m", "ted_stream.cli", "score", QUICKSTART]
    command(*words, *overrides("two", "reference", *given, "data.eval_batch_size=128"), ranks=2)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


@pytest.mark.long
def test_a_killed_run_on_two_ranks_goes_on_to_the_bit(overrides: Overrides, tmp_path: Path) -> None:
    command(KILLED, -1, QUICKSTART, *overrides("lived", "tdds"), ranks=2)
    with pytest.raises(AssertionError, match="exit status"):
        command(KILLED, 25, QUICKSTART, *overrides("killed", "tdds"), ranks=2)
    assert not (tmp_path / "killed" / "scores.parquet").exists()
    command(KILLED, -1, QUICKSTART, *overrides("killed", "tdds", "autoresume=true"), ranks=2)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "lived")


@pytest.mark.long
def test_one_table_of_several_ranks(overrides: Overrides) -> None:
    launcher: list[Any] = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "ted_stream.cli", "score", QUICKSTART, *overrides("run", "uniform")]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, check=True)
    assert done.stdout.count("samples scored") == 1
