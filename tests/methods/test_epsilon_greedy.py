"""EpsilonGreedy against its rule, written down again in numpy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from owners import owned_with

from ted_stream.methods.epsilon_greedy import EpsilonGreedy
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.pruning.hashing import hash_ids, uniform

SEED = 5
EXAMPLES = (
    EpsilonGreedy(0.6),
    EpsilonGreedy(0.5, epsilon=0.4, alpha=0.0, schedule="constant", annealing=0.0),
    EpsilonGreedy(0.3, epsilon=1.0),
)


def first(keys: NDArray[np.floating], k: int) -> set[int]:
    """The k highest; of equal ones those of the highest hash."""
    order = np.lexsort((hash_ids(np.arange(len(keys)), seed=SEED), keys))
    return set(order[::-1][:k].tolist())


def the_rule(losses: NDArray[np.float32], counts: list[int], epsilon: float, alpha: float) -> Iterator[set[int]]:
    """e ← (1 - a)e + a·ℓ with a = 1 - alpha; the (1 - ε)K highest e, and εK drawn uniformly from the rest."""
    e = np.full(losses.shape[1], np.nan)
    for epoch, k in enumerate(counts):
        explored = round(epsilon * k)
        keep = first(np.where(np.isnan(e), np.inf, e), k - explored)
        draws = uniform(np.arange(len(e)), seed=SEED, epoch=epoch)
        rest = sorted(set(range(len(e))) - keep, key=lambda sample: -draws[sample])
        keep |= set(rest[:explored])
        yield keep
        for sample in keep:
            loss, a = float(losses[epoch, sample]), 1 - alpha
            e[sample] = loss if np.isnan(e[sample]) else (1 - a) * e[sample] + a * loss


@pytest.mark.parametrize("num_samples", [1, 2, 10, 607])
@pytest.mark.parametrize("schedule", ["roller-coaster", "constant"])
@pytest.mark.parametrize(("epsilon", "alpha"), [(0.0, 0.9), (0.1, 0.9), (0.35, 0.0), (1.0, 0.5)])
def test_is_the_rule(epsilon: float, alpha: float, schedule: str, num_samples: int) -> None:
    num_epochs = 12
    method = EpsilonGreedy(0.7, epsilon=epsilon, alpha=alpha, schedule=schedule)
    losses = np.random.default_rng(num_samples).gamma(2.0, size=(num_epochs, num_samples)).astype(np.float32)
    counts = [num_kept(method.keep_ratio(epoch, num_epochs), num_samples) for epoch in range(num_epochs)]
    store = ScoreStore(num_samples, method.running())
    for epoch, expected in enumerate(the_rule(losses, counts, epsilon, alpha)):
        owned = Owned(store, epoch=epoch, seed=SEED)
        chosen = method.choose(owned, epoch, counts[epoch])
        ids = np.flatnonzero(chosen.keep)
        assert set(ids.tolist()) == expected
        assert method.weigh(owned, chosen, 0.5) == 1.0
        measured = losses[epoch, ids].astype(np.float64)
        store.update(Measurements(ids=ids, importance=measured, steps=np.zeros(len(ids), int)), epoch=epoch)


@pytest.mark.long
def test_every_other_sample_is_drawn_as_often() -> None:
    """40 samples, 10 kept: the 6 highest always, of the 34 others 4 each time."""
    method, epochs = EpsilonGreedy(0.75, epsilon=0.4), 2000
    scores = np.arange(40.0)
    times = np.zeros(40)
    for epoch in range(epochs):
        times += method.choose(owned_with(scores, epoch=epoch), epoch, 10).keep
    assert (times[34:] == epochs).all()
    p = 4 / 34
    assert (np.abs(times[:34] - epochs * p) < 4.5 * np.sqrt(epochs * p * (1 - p))).all()


def test_samples_never_measured_rank_first_whatever_the_others() -> None:
    chosen = EpsilonGreedy(0.5, epsilon=0.0).choose(owned_with([9.0, np.nan, 3e38, np.nan]), 1, 3)
    assert chosen.keep.tolist() == [False, True, True, True]


def test_equal_losses_give_the_number_asked_for() -> None:
    for k in range(1, 9):
        assert np.count_nonzero(EpsilonGreedy(0.5, epsilon=0.3).choose(owned_with(np.ones(8)), 2, k).keep) == k


@pytest.mark.parametrize(("setting", "value"), [("epsilon", 1.1), ("epsilon", -0.1), ("alpha", 1.0), ("alpha", -1)])
def test_refuses(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{setting} is"):
        EpsilonGreedy(0.5, **{setting: value})
