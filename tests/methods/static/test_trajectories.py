"""Forgetting, AUM, DUAL and TEDS: what is remembered of a training, against all of it written down."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ted_stream.methods.method import Method
from ted_stream.methods.static.aum import AUM
from ted_stream.methods.static.dual import DUAL
from ted_stream.methods.static.forgetting import Forgetting
from ted_stream.methods.static.teds import TEDS
from ted_stream.methods.static.trajectory import TrajectoryScore
from ted_stream.pruning import Owned, ScoreStore
from ted_stream.pruning.measures import LogitMargin, MaskGradient, TrueProbability
from ted_stream.pruning.predictions import Predictions
from ted_stream.testing import check_measure
from ted_stream.testing.methods import METHOD_CHECKS

N, T = 19, 35
METHODS: list[TrajectoryScore] = [AUM(), AUM(keep="hardest"), DUAL(), DUAL(epochs=7, window=2), Forgetting(), TEDS()]
Columns = dict[str, NDArray[np.float32]]


def empty(method: TrajectoryScore, num_samples: int = N) -> Columns:
    return {name: np.full(num_samples, np.nan, np.float32) for name in method.running().columns}


def fold(method: TrajectoryScore, measured: NDArray[np.floating]) -> Columns:
    """The columns after epochs of measurements (epochs, N), NaN where a sample was not measured."""
    columns, running = empty(method, measured.shape[1]), method.running()
    for epoch, values in enumerate(measured.astype(np.float64)):
        rows = np.flatnonzero(~np.isnan(values))[::-1]  # in any order
        running.fold(columns, rows, values[rows], epoch)
    assert all(column.dtype == np.float32 for column in columns.values())
    return columns


def scores(method: TrajectoryScore, measured: NDArray[np.floating]) -> NDArray[np.float32]:
    return method.static_scores(fold(method, measured)).scores


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_keeps_what_every_method_keeps(method: TrajectoryScore, check: Callable[[Method], None]) -> None:
    check(method)


def test_they_keep_all() -> None:
    for method in METHODS:
        store = ScoreStore(N, method.running())
        assert method.keep_ratio(3, 9) == 1.0
        assert method.choose(Owned(store, epoch=3, seed=0), 3, N).keep.tolist() == [True] * N
        assert eval(repr(method), {type(method).__name__: type(method)}) == method
        running = method.running()
        assert (running.relative, running.window) == (False, None)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_no_score_before_the_first_measurement(method: TrajectoryScore) -> None:
    assert np.isnan(method.running().scores(empty(method))).all()
    measured = np.random.default_rng(0).random((T, N))
    measured[:, 3] = np.nan
    columns = fold(method, measured)
    assert np.flatnonzero(np.isnan(method.running().scores(columns))).tolist() == [3]
    with pytest.raises(ValueError, match=f"1 of {N} samples have no {type(method).__name__} score"):
        method.static_scores(columns)


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("1", 0),
        ("11111", 0),
        ("00111", 0),
        ("0", 1),
        ("00000", 5),  # never learnt: as many as epochs
        ("10", 1),
        ("01010", 2),
        ("10101", 2),
        ("0000000010", 1),
        ("1.0.1", 1),  # not measured in between
        (".....0", 6),
        ("1 h 1", 1),  # measured twice, right once
    ],
)
def test_forgetting(sequence: str, expected: float) -> None:
    values = {"0": 0.0, "1": 1.0, ".": np.nan, "h": 0.5}
    measured = np.array([[values[mark]] for mark in sequence.replace(" ", "")])
    assert scores(Forgetting(), measured).tolist() == [expected]


def test_what_was_never_learnt_ranks_above_all() -> None:
    rng = np.random.default_rng(0)
    measured = (rng.random((T, N)) < 0.5).astype(float)
    measured[:, 4] = 0
    measured[:, 5] = np.arange(T) % 2  # forgotten as often as can be
    found = scores(Forgetting(), measured)
    assert found.argmax() == 4
    assert found[5] == np.delete(found, 4).max()
    assert np.isfinite(found).all()
    expected = [sum(a > b for a, b in pairwise(column)) for column in measured.T]
    assert np.delete(found, 4).tolist() == np.delete(expected, 4).tolist()


def test_aum() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(T, N, 5)).astype(np.float32), rng.integers(5, size=N)
    measured, expected = [], np.zeros(N)
    for z in logits:
        measured.append(Predictions(torch.from_numpy(z), torch.from_numpy(labels), shifted=False).means(LogitMargin.of))
        for k, y in enumerate(labels):
            expected[k] += (z[k, y] - np.delete(z[k], y).max()) / T
    values = torch.stack(measured).numpy()
    np.testing.assert_allclose(scores(AUM(), values), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores(AUM(keep="hardest"), values), -expected, rtol=1e-5, atol=1e-6)


def test_aum_of_samples_that_were_measured_seldom() -> None:
    measured = np.random.default_rng(2).normal(size=(T, N))
    measured[np.random.default_rng(3).random((T, N)) < 0.4] = np.nan
    np.testing.assert_allclose(scores(AUM(), measured), np.nanmean(measured, 0), rtol=1e-5, atol=1e-6)


def by_the_paper(p: NDArray[np.float64], epochs: int, window: int) -> list[float]:
    found = []
    for of_sample in p[:epochs].T:
        parts = [of_sample[t : t + window] for t in range(epochs - window + 1)]
        deviations = [np.sqrt(((part - part.mean()) ** 2).sum() / (window - 1)) for part in parts]
        found.append(np.mean([u * (1 - part.mean()) for u, part in zip(deviations, parts, strict=True)]))
    return found


@pytest.mark.parametrize(("epochs", "window"), [(30, 10), (12, 2), (7, 7)])
def test_dual(epochs: int, window: int) -> None:
    p = np.random.default_rng(4).random((T, N))
    found = scores(DUAL(epochs=epochs, window=window), p)
    np.testing.assert_allclose(found, by_the_paper(p, epochs, window), rtol=1e-5)


def test_dual_has_no_static_score_before_a_window_is_full() -> None:
    p = np.random.default_rng(5).random((T, N))
    p[:5, 7] = np.nan  # measured too seldom to be full in 12 epochs
    columns = fold(DUAL(), p[:12])
    assert DUAL().running().scores(columns)[7] == 0
    with pytest.raises(ValueError, match=f"1 of {N} samples"):
        DUAL().static_scores(columns)
    p[:5, 7] = 0.5
    with pytest.raises(ValueError, match="Train for as many epochs"):
        scores(DUAL(), p[:9])
    assert np.isfinite(scores(DUAL(), p[:10])).all()
    assert len(DUAL().running().columns) == 12


def test_measures() -> None:
    assert TEDS(site="output", alpha=0.5).measure() == MaskGradient("output")
    assert TEDS(alpha=0.5).running().alpha == 0.5
    assert DUAL().measure() == TrueProbability()
    check_measure(LogitMargin(), lambda p, y, f: p.log()[y.argmax()] - p.log()[y == 0].max())


def test_the_margin_of_class_probabilities() -> None:
    z = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 1.0]])
    found = LogitMargin.of(z, torch.tensor([[0.2, 0.7, 0.1], [0.0, 0.4, 0.6]]))
    assert found.tolist() == [2.0, -2.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AUM(keep="highest"), "keep is 'highest'"),
        (lambda: DUAL(window=1), r"window is 1 of epochs=30, but must lie in \[2, epochs\]"),
        (lambda: DUAL(epochs=5), "window is 10 of epochs=5"),
        (lambda: TEDS(site="logits"), "site is 'logits'"),
        (lambda: TEDS(alpha=1.0), "alpha is 1.0"),
    ],
)
def test_settings_out_of_range(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
    with pytest.raises(TypeError, match=r"epochs is 30\.0"):
        DUAL(epochs=30.0)  # pyright: ignore[reportArgumentType]
