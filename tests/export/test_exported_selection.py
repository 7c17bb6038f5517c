"""Which samples a selection means, against what the skip-lists and scores say by other means."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import kept_by_list, layout_of, random_masks, write_run

from ted_stream.export import Selection, select
from ted_stream.skip_list import SkipListError

LAYOUT = layout_of(7, 1, 20, 12)
N, EPOCHS = 40, 5
MASKS = random_masks(N, EPOCHS - 1)
MASKS.append(np.ones(N, np.bool_))  # annealing: the last epoch prunes nothing
SCORES = np.random.default_rng(1).normal(size=N).astype(np.float32)
SCORES[[3, 30]] = np.nan
SCORES[[5, 6, 7, 8]] = 0.25  # equal
WEIGHTS = [
    None,
    *(np.random.default_rng(e).random(int(MASKS[e].sum())).astype(np.float32) + 1 for e in (1, 2, 3)),
    None,
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", LAYOUT, MASKS, scores=SCORES, weights=WEIGHTS)
    return tmp_path / "run"


@pytest.mark.parametrize("epoch", [None, 0, 2, 4])
def test_what_an_epoch_kept(epoch: int | None, run: Path) -> None:
    found, decides = select(run, Selection(epoch=epoch)), 3 if epoch is None else epoch
    layout = found.layout
    places = [(layout.stream_keys[0], shard.name, at) for shard in layout.shards for at in range(shard.samples)]
    kept = kept_by_list(run / f"skip_lists/ep000{decides}.parquet")
    assert [places[at] for at in found.kept_ids()] == kept
    assert found.keep.tolist() == MASKS[decides].tolist()
    assert (found.epoch, found.num_kept, found.num_samples, found.epochs) == (decides, len(kept), N, EPOCHS)
    assert (found.run, found.method, found.settings, found.finished) == ("r", "TED", "TED(0.5)", True)
    assert found.kept_per_shard.tolist() == [sum(name == shard.name for _, name, _ in kept) for shard in LAYOUT.shards]
    assert found.times_kept is not None
    assert found.times_kept.tolist() == np.sum(MASKS, axis=0).tolist()
    np.testing.assert_array_equal(np.array(found.scores), SCORES)
    assert found.scored_after == EPOCHS - 1
    assert found.weights is WEIGHTS[decides] or np.array_equal(np.array(found.weights), np.array(WEIGHTS[decides]))


@pytest.mark.parametrize("least", [1, 3, 5])
def test_what_several_epochs_kept(least: int, run: Path) -> None:
    found = select(run, Selection(min_epochs=least))
    assert found.keep.tolist() == [sum(mask[at] for mask in MASKS) >= least for at in range(N)]
    assert (found.epoch, found.skip_list_digest, found.weights) == (None, None, None)


@pytest.mark.parametrize("lowest", [False, True])
def test_by_threshold(lowest: bool, run: Path) -> None:
    found = select(run, Selection(threshold=0.25, lowest=lowest))
    expected = [at for at in range(N) if (SCORES[at] <= 0.25 if lowest else SCORES[at] >= 0.25)]
    assert found.kept_ids().tolist() == expected
    assert not {3, 30} & set(expected)


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("number", [1, 13, 16, 38])
def test_by_ratio(lowest: bool, number: int, run: Path) -> None:
    found = select(run, Selection(ratio=number / N, lowest=lowest))
    known = [at for at in range(N) if not np.isnan(SCORES[at])]
    ranked = sorted(known, key=lambda at: (SCORES[at] if lowest else -SCORES[at], at))
    assert found.kept_ids().tolist() == sorted(ranked[:number])


def test_equal_scores_are_taken_in_the_order_of_ids(run: Path) -> None:
    above = int((SCORES > 0.25).sum())
    kept = select(run, Selection(ratio=(above + 2) / N)).kept_ids()
    assert {5, 6} <= set(kept.tolist())
    assert not {7, 8} & set(kept.tolist())


def test_only_what_is_needed_is_read(run: Path) -> None:
    (run / "skip_lists/ep0001.parquet").unlink()
    stages: list[tuple[str, int, int]] = []
    found = select(run, count=False, progress=lambda *told: stages.append(told))
    assert found.times_kept is None
    assert not stages
    assert select(run).times_kept is None  # one of the lists is gone, so that nobody knows
    with pytest.raises(FileNotFoundError, match=r"no skip-list at .*ep0001"):
        select(run, Selection(min_epochs=2))
    with pytest.raises(FileNotFoundError, match=r"no skip-list at .*ep0001"):
        select(run, Selection(epoch=1))


def test_progress_names_the_lists(run: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    select(run, progress=lambda *told: stages.append(told))
    assert stages == [("lists", at, EPOCHS) for at in range(EPOCHS + 1)]


def test_a_run_without_scores(tmp_path: Path) -> None:
    write_run(tmp_path, LAYOUT, MASKS)
    found = select(tmp_path)
    assert (found.scores, found.scored_after) == (None, None)
    with pytest.raises(ValueError, match=r"has no running scores, by which samples were to be selected"):
        select(tmp_path, Selection(ratio=0.5))


@pytest.mark.long
def test_a_run_in_an_object_store(s3: Any) -> None:
    write_run("s3://training/run", LAYOUT, MASKS, scores=SCORES, finished=False)
    found = select("s3://training/run", Selection(min_epochs=3))
    assert found.keep.tolist() == (np.sum(MASKS, axis=0) >= 3).tolist()
    assert not found.finished


def test_a_list_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_run(other, LAYOUT, random_masks(N, EPOCHS, seed=7))
    shutil.copy(other / "skip_lists/ep0002.parquet", run / "skip_lists/ep0002.parquet")
    with pytest.raises(SkipListError, match=r"ep0002\.parquet.*this is another list"):
        select(run)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epoch": 1, "ratio": 0.5}, "epoch and ratio are given; give one of them"),
        ({"epoch": -1}, "epoch is -1; epochs count from 0"),
        ({"min_epochs": 0}, "min_epochs is 0; give at least 1"),
        ({"threshold": float("nan")}, "threshold is nan; give a finite score"),
        ({"ratio": 0.0}, r"ratio is 0.0, outside \(0, 1\]"),
        ({"ratio": 1.5}, r"ratio is 1.5, outside \(0, 1\]"),
        ({"lowest": True, "epoch": 1}, "lowest has no effect without threshold or ratio"),
    ],
)
def test_what_is_no_selection(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Selection(**given)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(epoch=5), "epoch is 5, but .* has the epochs 0 to 4"),
        (Selection(min_epochs=6), "min_epochs is 6, but .* has 5 epochs so far"),
        (Selection(threshold=99), r"no samples with scores of at least 99: 38 of 40 samples have scores, from .* to"),
        (Selection(ratio=1.0), r"ratio is 1, 40 of 40 samples, but .* has scores of 38; give at most 0.95"),
    ],
)
def test_what_a_run_does_not_have(selection: Selection, words: str, run: Path) -> None:
    with pytest.raises(ValueError, match=words):
        select(run, selection)


@pytest.mark.parametrize(
    "selection", [Selection(), Selection(epoch=0), Selection(min_epochs=2), Selection(ratio=0.5, lowest=True)]
)
def test_a_selection_as_text(selection: Selection) -> None:
    assert Selection.from_json(selection.to_json()) == selection
