"""A selection that degenerates is warned of, once and with the fix, and no other is."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from guarded_runs import N, as_version_4, digits, said, train
from torch import nn
from torch.utils.data import TensorDataset

from ted_stream import (
    RCAP,
    TED,
    UCB,
    Composed,
    DynamicDUAL,
    FixedSubset,
    ImportanceSampling,
    InfoBatch,
    OrderDP,
    RandomPruning,
    SelectionWarning,
)
from ted_stream.engine import EpochRecord
from ted_stream.engine.guard import findings
from ted_stream.engine.plan import RunPlan
from ted_stream.engine.signs import classes_of, count_targets, scores_alike
from ted_stream.export.classes import find_scarce
from ted_stream.methods import Method
from ted_stream.pruning import Owned, ScoreStore, SingleProcess


@contextmanager
def hears(*patterns: str) -> Iterator[None]:
    """Just these selection warnings, in this order, shown at the line of this file that trains."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    mine = [each for each in heard if issubclass(each.category, SelectionWarning)]
    assert len(mine) == len(patterns), [str(each.message) for each in mine]
    for each, pattern in zip(mine, patterns, strict=True):
        with pytest.raises(SelectionWarning, match=pattern):
            raise each.category(str(each.message))
        assert Path(each.filename).name == "guarded_runs.py"


FROZEN = r"TED\(.*is frozen: in the epochs 2 to 4, \d+ samples returned .*, where of a uniform draw .* choice='sampled'"


@pytest.mark.parametrize("seed", range(3))
def test_the_highest_mask_gradients_are_frozen(seed: int, tmp_path: Path) -> None:
    with hears(FROZEN):
        run, _ = train(TED(0.7), tmp_path, seed=seed)
    assert said(run) == {4: ["frozen"]}
    rows = json.loads((tmp_path / "run.json").read_text())["epochs"]
    assert rows[4]["warnings"] == ["frozen"]
    assert sum(row["returning"] for row in rows[2:5]) < 0.05 * sum(row["expected_returning"] for row in rows[2:5])


HEALTHY = [
    RandomPruning(0.7),
    RandomPruning(0.7, coverage="even", class_shares="equal"),
    Composed(0.7, clip_chance=True, floor=0.1),
    Composed(0.7, choice="even", clip_chance=True, floor=0.1),
    ImportanceSampling(0.7),
    InfoBatch(0.7),
    DynamicDUAL(0.7),
    DynamicDUAL(0.8, schedule="constant"),
    RCAP(0.7),
    OrderDP(0.7),
    TED(0.005),
]


@pytest.mark.long
@pytest.mark.parametrize("method", HEALTHY, ids=repr)
def test_others_are_not(method: Method, tmp_path: Path) -> None:
    with hears():
        train(method, tmp_path)


def test_a_fixed_subset_is_static_as_it_was_asked_to_be(tmp_path: Path) -> None:
    train(TED(0.5, choice="sampled"), tmp_path / "first", epochs=3)
    with hears():
        run, _ = train(FixedSubset(str(tmp_path / "first/skip_lists/ep0002.parquet")), tmp_path / "fixed", epochs=6)
    assert [record.returning for record in run.records] == [0] * 6


def test_what_is_uniform_returns_as_expected(tmp_path: Path) -> None:
    run, _ = train(RandomPruning(0.7), tmp_path)
    for record in run.records[2:]:
        assert record.returning == pytest.approx(record.expected_returning, rel=0.25)
    first, annealing = run.records[1], run.records[-1]
    assert first.expected_returning == 0 < first.kept < N
    assert annealing.kept == N


def test_a_class_that_is_gone_is_named(tmp_path: Path) -> None:
    """Nothing passes a mask at an input that is zero, so its score is zero."""
    x, y = digits().tensors
    x[y == 3] = 0
    method = Composed(0.7, importance="mask_gradient", site="input")
    told = (
        r"Class 3 nearly vanished from what Composed\(.*epochs 1 to 5 less than 10% .*class_shares='sqrt'.* above 0\.0"
    )
    with hears(told):
        run, _ = train(method, tmp_path, dataset=TensorDataset(x, y))
    assert said(run) == {5: ["class"]}
    assert [record.scarce_classes for record in run.records] == [[], *[[3]] * 9, [], []]


def test_equal_scores(tmp_path: Path) -> None:
    """Nothing passes a mask at an input that is zero; ties are broken alike in every epoch, which is told already."""
    x, y = digits().tensors
    with hears(r"All 600 scores of TED\(.*are equal in the epochs 1 to 3.*ties and chance decide"):
        run, _ = train(TED(0.5, site="input"), tmp_path, dataset=TensorDataset(0 * x, y))
    assert said(run) == {3: ["alike"]}
    assert not any(record.returning for record in run.records[:-2])


def test_a_diverged_loss_is_told_at_once_and_nothing_else_after(tmp_path: Path) -> None:
    x, y = digits().tensors
    with hears(r"None of the 600 measurements of epoch 0 is finite: the loss has diverged"):
        run, _ = train(TED(0.7), tmp_path, dataset=TensorDataset(x * torch.nan, y))
    assert said(run) == {0: ["diverged"]}


def test_many_measurements_that_are_not_finite(tmp_path: Path) -> None:
    """Told at the first epoch's end; the weights are kept out of it, as a gradient scaler does."""
    x, y = digits().tensors
    x[:250] = torch.nan

    def scaled(model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            parameter.register_hook(torch.nan_to_num)
        return model

    with hears(r"250 of the 600 measurements of epoch 0 are not finite.*25% are many"):
        run, _ = train(TED(0.1), tmp_path, dataset=TensorDataset(x, y), wrap=scaled, epochs=3)
    assert said(run) == {0: ["non_finite"]}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ted_stream.SelectionWarning")
@pytest.mark.parametrize("stop", [2, 4, 5])
def test_a_resumed_run_goes_on_where_it_was(stop: int, tmp_path: Path) -> None:
    """It counts what was before, and says nothing twice."""
    whole, _ = train(TED(0.7), tmp_path / "whole")
    _, state = train(TED(0.7), tmp_path / "part", stop=stop)
    torch.save(state, tmp_path / "state.pt")
    with hears(*[FROZEN] * (stop <= 4)):
        again, _ = train(TED(0.7), tmp_path / "part", state=torch.load(tmp_path / "state.pt"))
    assert said(again) == said(whole) == {4: ["frozen"]}
    assert [record.scarce_classes for record in again.records] == [record.scarce_classes for record in whole.records]


def test_classes_of_a_resumed_epoch_are_those_of_all_of_it(tmp_path: Path) -> None:
    whole, _ = train(RandomPruning(0.5), tmp_path / "random", epochs=2)
    assert not whole.engine.state_dict()["first_classes"], "nothing is measured"
    whole, _ = train(TED(0.5), tmp_path / "whole", epochs=2)
    _, state = train(TED(0.5), tmp_path / "part", epochs=2, stop=0)
    again, _ = train(TED(0.5), tmp_path / "part", epochs=2, state=state)
    expected = torch.bincount(digits().tensors[1]).tolist()
    assert again.engine.state_dict()["first_classes"] == whole.engine.state_dict()["first_classes"] == expected


def test_a_state_of_the_version_before(tmp_path: Path) -> None:
    """Goes on, without the figures of the epochs before it."""
    _, state = train(TED(0.7), tmp_path, stop=3)
    old = state["pruner"]["engine"]
    as_version_4(old)
    del old["first_classes"], old["measurements"]["labels"]
    old["version"] = 3
    for record in old["records"]:
        for name in ("expected_returning", "scores_alike", "score_quantiles", "scarce_classes", "warnings"):
            del record[name]
    with hears():
        run, _ = train(TED(0.7), tmp_path, state=state)
    assert not any(record.scarce_classes for record in run.records)
    old["version"] = 2
    with pytest.raises(ValueError, match="version 2, but this ted-stream reads versions 3 to 5"):
        train(TED(0.7), tmp_path, state=state)


def test_as_an_error_it_ends_the_run_before_the_next_epoch(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SelectionWarning)
        with pytest.raises(SelectionWarning, match="is frozen"):
            train(TED(0.7), tmp_path)
    rows = json.loads((tmp_path / "run.json").read_text())["epochs"]
    assert len(rows) == 5
    assert rows[4]["warnings"] == ["frozen"]


def records_of(returning: int, expected: float, *, epochs: int, scarce: Sequence[int] = ()) -> list[EpochRecord]:
    """Of epochs that each keep half of 1000 samples, after a full one."""
    names = {"keep_ratio": 0.5, "unmeasured": 0, "skip_list": "", "digest": "", "forwarded": 500}
    records = [EpochRecord(epoch=epoch, kept=500, returning=0, **names) for epoch in range(epochs)]
    records[0].kept = 1000
    for record in records[2:]:
        record.returning, record.expected_returning, record.scarce_classes = returning, expected, [*scarce]
    return records


def found(records: list[EpochRecord], *, epochs: int = 20, method: Method | None = None) -> dict[str, str]:
    return findings(RunPlan(method=method or TED(0.5), num_samples=1000, epochs=epochs), records)


@pytest.mark.parametrize(
    ("returning", "expected", "at", "epochs", "is_frozen"),
    [
        (0, 250.0, 5, 20, True),
        (24, 250.0, 5, 20, True),
        (25, 250.0, 5, 20, False),  # a tenth
        (0, 9.9, 5, 20, False),  # too few could return
        (0, 10.0, 5, 20, True),
        (0, 250.0, 4, 20, False),  # the first pruned epoch is none of the three
        (0, 250.0, 5, 90, False),  # of longer runs a tenth
        (0, 250.0, 11, 90, True),
    ],
)
def test_frozen(returning: int, expected: float, at: int, epochs: int, is_frozen: bool) -> None:
    assert ("frozen" in found(records_of(returning, expected, epochs=at), epochs=epochs)) == is_frozen


def test_annealing_and_what_was_said_are_passed_over() -> None:
    records = records_of(0, 250, epochs=5)
    assert found(records).keys() == {"frozen"}
    records[2].warnings = ["frozen"]
    assert not found(records)
    records[2].warnings, records[-1].kept = [], 1000
    assert not found(records)
    del records[3]
    assert not found(records)


def test_a_class_must_be_gone_for_a_quarter_of_the_run() -> None:
    records = records_of(250, 250, epochs=8, scarce=[3, 7])
    records[3].scarce_classes = [7]
    message = found(records, epochs=24, method=Composed(0.5, choice="sampled"))["class"]
    assert message.startswith("Class 7 nearly vanished from what Composed(")
    assert "epochs 2 to 7" in message
    assert "a floor above 0.0" in message
    assert "class" not in found(records, epochs=28)
    message = found(records_of(250, 250, epochs=8, scarce=range(7)))["class"]
    assert message.startswith("Classes 0, 1, 2, 3, 4 and 2 more nearly vanished")


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (TED(0.5), "Draw instead of ranking: choice='sampled'; or take a fresh"),
        (TED(0.5, choice="sampled", floor=0.1), "Pass a floor above 0.1, "),
        (OrderDP(0.5), "Pass a smaller pool, "),
        (UCB(0.5), "Take a fresh random subset in every epoch: RandomPruning."),
    ],
    ids=repr,
)
def test_the_fix_is_one_that_the_method_has(method: Method, told: str) -> None:
    assert told in found(records_of(0, 250, epochs=5), method=method)["frozen"]


def test_scarce_classes() -> None:
    first = [400, 400, 100, 100, 0]
    assert find_scarce(np.array([200, 200, 50, 50, 0]), first) == []
    assert find_scarce(np.array([225, 225, 50, 0, 0]), first) == [3]
    assert find_scarce(np.array([440, 10, 40, 10]), first) == [1]
    assert find_scarce(np.array([0, 39]), first) == []  # too few to tell
    assert find_scarce(np.array([250, 250]), []) == []
    assert find_scarce(np.empty(0, np.int64), first) == []
    # Equal shares of a long tail: 10 of the 9000 are a tenth of their share, and as many as of all others.
    assert find_scarce(np.full(11, 10), [9000, *[100] * 10]) == []


def test_classes_are_counted_where_there_are_some() -> None:
    ranks = SingleProcess()
    assert classes_of(count_targets(np.array([2, 0, -100, 2]), ranks)).tolist() == [1, 0, 2]
    for none in (None, np.array([-100]), np.empty(0, np.int64), np.array([1, 1 << 40])):
        assert classes_of(count_targets(none, ranks)).tolist() == []


@pytest.mark.parametrize(
    ("scores", "alike"),
    [([0, 0, 0], True), ([2.3, 2.3, 2.3000002], True), ([2.3, 2.3, 2.31], False), ([1, 1, np.nan], False)],
)
def test_alike(scores: list[float], alike: bool) -> None:
    store = ScoreStore(3)
    store.columns["score"][:] = scores
    assert scores_alike(Owned(store, epoch=1, seed=0)) == alike
