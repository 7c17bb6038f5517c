"""RePB against its rule, written down again in numpy."""

from typing import Any

import numpy as np
import pytest

from ted_stream.methods.repb import RePB, WindowExcess
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.pruning.hashing import uniform

SEED = 5
EXAMPLES = (RePB(0.5), RePB(0.9, window=2, annealing=0.0), RePB(0.0, window=1))


@pytest.mark.parametrize("batch_size", [1, 8, 1000])
@pytest.mark.parametrize("num_samples", [1, 2, 10, 431])
@pytest.mark.parametrize("method", EXAMPLES, ids=repr)
def test_is_the_rule(method: RePB, num_samples: int, batch_size: int) -> None:
    """Of a window of batches what is not below its mean, the others and the unused with probability 1 - ρ."""
    num_epochs = 16
    rng = np.random.default_rng(num_samples)
    store = ScoreStore(num_samples, method.running())
    chosen_in: list[set[int]] = []  # what every epoch trained on
    above: set[int] = set()
    for epoch in range(num_epochs):
        ratio = method.keep_ratio(epoch, num_epochs)
        anneals = epoch >= num_epochs - round(method.annealing * num_epochs)
        draws = uniform(np.arange(num_samples), seed=SEED, epoch=epoch)
        reentering = set(np.flatnonzero(draws < 1 - method.prune_ratio).tolist())
        expected = above | reentering if epoch and not anneals else set(range(num_samples))
        assert ratio == (1 if anneals else None)

        owned = Owned(store, epoch=epoch, seed=SEED)
        chosen = method.choose(owned, epoch, None if ratio is None else num_kept(ratio, num_samples))
        ids = np.flatnonzero(chosen.keep)
        assert ids.tolist() == sorted(expected)
        chosen_in.append(expected)
        weights = np.broadcast_to(method.weigh(owned, chosen, len(ids) / num_samples), len(ids))
        times = [sum(sample in one for one in chosen_in) for sample in ids.tolist()]
        epochs_per_time = np.ones(len(ids)) if anneals else len(chosen_in) / np.array(times)
        np.testing.assert_allclose(weights, epochs_per_time, rtol=1e-6)
        assert (weights >= 1).all()

        order = rng.permutation(ids)
        losses = rng.lognormal(-0.1 * epoch, size=len(order)).astype(np.float32)
        steps = np.arange(len(order)) // batch_size
        store.update(Measurements(ids=order, importance=losses.astype(np.float64), steps=steps), epoch=epoch)
        above = set()
        for start in range(0, len(order), method.window * batch_size):
            window = slice(start, start + method.window * batch_size)
            mean = losses[window].mean(dtype=np.float64)
            above |= set(order[window][losses[window] >= mean].tolist())


def store_after(method: RePB, *epochs: dict[int, float], num_samples: int) -> ScoreStore:
    """What a method remembers after epochs of one step, which measured these losses by id."""
    store = ScoreStore(num_samples, method.running())
    for epoch, losses in enumerate(epochs):
        ids, values = np.array(list(losses)), np.array(list(losses.values()))
        store.update(Measurements(ids=ids, importance=values, steps=np.zeros(len(ids), int)), epoch=epoch)
    return store


@pytest.mark.parametrize("loss", [0.0, 0.1, 2.5, 1e-30, 1234.567])
@pytest.mark.parametrize("num_samples", [1, 2, 3, 97])
def test_equal_losses_are_all_kept(num_samples: int, loss: float) -> None:
    store = store_after(RePB(0.9), dict.fromkeys(range(num_samples), loss), num_samples=num_samples)
    assert RePB(0.9).choose(Owned(store, epoch=1, seed=0), 1, None).keep.all()


def test_each_sample_below_the_mean_or_unused_is_drawn_by_itself() -> None:
    """In epoch 2 of 40 samples: 0 … 9 are above the mean, 10 … 19 below it, 20 … 29 unused, 30 … 39 new."""
    method, runs = RePB(0.8), 4000
    store = store_after(
        method,
        dict.fromkeys(range(30), 1.0),
        dict.fromkeys(range(10), 3.0) | dict.fromkeys(range(10, 20), 1.0),
        num_samples=40,
    )
    kept = np.stack([method.choose(Owned(store, epoch=2, seed=seed), 2, None).keep for seed in range(runs)])
    certain = np.r_[0:10, 30:40]
    assert kept[:, certain].all()
    drawn = kept[:, 10:30]
    assert (np.abs(drawn.mean(0) - 0.2) < 4.5 * np.sqrt(0.2 * 0.8 / runs)).all()
    of_20 = drawn.sum(1)  # independent draws: a binomial count, not 4 every time
    assert of_20.var() == pytest.approx(20 * 0.2 * 0.8, rel=0.15)
    chosen = method.choose(Owned(store, epoch=2, seed=0), 2, None)
    assert chosen.inclusion is not None
    np.testing.assert_allclose(chosen.inclusion, np.where(np.isin(np.arange(40), certain), 1, 0.2), rtol=1e-6)


def test_weights_tend_to_one_over_the_probability_and_sum_to_all_samples() -> None:
    method, num_samples, num_epochs = RePB(0.7, annealing=0.0), 500, 400
    store = ScoreStore(num_samples, method.running())
    losses = np.where(np.arange(num_samples) % 2, 10.0, 0.1)
    sums, ids, weights = [], np.empty(0, np.int64), np.empty(0)
    for epoch in range(num_epochs):
        owned = Owned(store, epoch=epoch, seed=SEED)
        chosen = method.choose(owned, epoch, None)
        ids = np.flatnonzero(chosen.keep)
        weights = np.asarray(method.weigh(owned, chosen, len(ids) / num_samples))
        assert weights.dtype == np.float32
        sums.append(weights.sum())
        store.update(Measurements(ids=ids, importance=losses[ids], steps=np.zeros(len(ids), int)), epoch=epoch)
    hard = ids % 2 == 1
    assert (weights[hard] == 1).all()
    assert weights[~hard].mean() == pytest.approx(1 / 0.3, rel=0.03)
    assert np.mean(sums[100:]) == pytest.approx(num_samples, rel=0.03)


def test_one_sample_stays_where_nothing_was_measured_in_the_epoch_before() -> None:
    method = RePB(0.99)
    store = store_after(method, {0: 1.0, 1: 2.0}, num_samples=2)
    counts = {np.count_nonzero(method.choose(Owned(store, epoch=5, seed=s), 5, None).keep) for s in range(50)}
    assert counts == {1}


def test_only_epochs_that_trained_on_a_sample_count() -> None:
    store = store_after(RePB(0.5), {0: 1.0, 1: 2.0}, {1: 4.0}, {0: float("nan"), 1: 1.0}, num_samples=3)
    np.testing.assert_array_equal(store.columns["times"], [1, 3, np.nan])
    np.testing.assert_array_equal(store.columns["last_epoch"], [0, 2, np.nan])
    np.testing.assert_array_equal(store.columns["excess"], [-0.5, 0, np.nan])


@pytest.mark.parametrize("window", [0, -3])
def test_refuses_an_empty_window(window: int) -> None:
    for make in (WindowExcess, lambda window: RePB(0.5, window=window)):
        with pytest.raises(ValueError, match=r"^window is"):
            make(window=window)


@pytest.mark.parametrize("window", [2.0, "3", True, None])
def test_the_window_is_a_whole_number(window: Any) -> None:
    with pytest.raises(TypeError, match=r"^window is"):
        RePB(0.5, window=window)
