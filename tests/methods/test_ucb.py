"""UCB against its rule, written down again in numpy."""

from typing import Any

import numpy as np
import pytest

from ted_stream.methods.ucb import UCB, ConfidenceBound
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.pruning.hashing import hash_ids

SEED = 5
EXAMPLES = (UCB(0.6), UCB(0.5, c=4.0, alpha=0.0, schedule="constant", annealing=0.0), UCB(0.3, c=0, alpha=0.5))


@pytest.mark.parametrize("num_samples", [1, 2, 10, 607])
@pytest.mark.parametrize("schedule", ["roller-coaster", "constant"])
@pytest.mark.parametrize(("c", "alpha"), [(1.0, 0.9), (0.0, 0.9), (5.0, 0.3), (2.0, 0.0)])
def test_is_the_rule(c: float, alpha: float, schedule: str, num_samples: int) -> None:
    """e ← (1 - a)e + a·ℓ and v ← (1 - a)v + a(ℓ - e)², e the old one, a = 1 - alpha; the K highest e + c·v."""
    num_epochs, a = 12, 1 - alpha
    method = UCB(0.7, c=c, alpha=alpha, schedule=schedule)
    losses = np.random.default_rng(num_samples).gamma(2.0, size=(num_epochs, num_samples)).astype(np.float32)
    store = ScoreStore(num_samples, method.running())
    e, v = np.full(num_samples, np.nan), np.full(num_samples, np.nan)
    for epoch in range(num_epochs):
        k = num_kept(method.keep_ratio(epoch, num_epochs), num_samples)
        keys = np.where(np.isnan(e), np.inf, e + c * v)
        expected = np.lexsort((hash_ids(np.arange(num_samples), seed=SEED), keys))[::-1][:k]
        owned = Owned(store, epoch=epoch, seed=SEED)
        chosen = method.choose(owned, epoch, k)
        ids = np.flatnonzero(chosen.keep)
        assert ids.tolist() == sorted(expected.tolist())
        assert method.weigh(owned, chosen, 0.5) == 1.0
        measured = losses[epoch, ids].astype(np.float64)
        store.update(Measurements(ids=ids, importance=measured, steps=np.zeros(len(ids), int)), epoch=epoch)
        for sample, loss in zip(ids, measured, strict=True):
            if np.isnan(e[sample]):
                e[sample], v[sample] = loss, 0.0
            else:
                v[sample] = (1 - a) * v[sample] + a * (loss - e[sample]) ** 2
                e[sample] = (1 - a) * e[sample] + a * loss
        np.testing.assert_allclose(store.columns["mean"], e, rtol=1e-5)
        np.testing.assert_allclose(store.columns["variance"], v, rtol=1e-5, atol=1e-12)


def test_the_variance_is_about_the_old_mean() -> None:
    running = ConfidenceBound(c=2.0, alpha=0.5)
    columns = {name: np.full(2, np.nan, np.float32) for name in running.columns}
    scores = []
    for epoch, loss in enumerate([1.0, 3.0, 2.0]):
        running.fold(columns, np.array([1]), np.array([loss]), epoch)
        scores.append((columns["mean"][1], columns["variance"][1], running.scores(columns)[1]))
    assert scores == [(1, 0, 1), (2, 2, 6), (2, 1, 4)]
    assert np.isnan(running.scores(columns)[0])


def test_a_varying_loss_ranks_above_a_steady_one_of_a_higher_mean() -> None:
    for c, kept in ((0.0, 1), (1.0, 0)):
        method = UCB(0.5, c=c, alpha=0.5)
        store = ScoreStore(2, method.running())
        for values in ([0.0, 2.2], [4.0, 2.2]):
            store.update(Measurements(ids=np.arange(2), importance=np.array(values), steps=np.zeros(2, int)))
        assert np.flatnonzero(method.choose(Owned(store, epoch=2, seed=0), 2, 1).keep).tolist() == [kept]


@pytest.mark.parametrize(("setting", "value"), [("c", -0.1), ("c", float("inf")), ("alpha", 1.0), ("alpha", -0.5)])
def test_refuses(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{setting} is"):
        UCB(0.5, **{setting: value})
    with pytest.raises(ValueError, match=f"^{setting} is"):
        ConfidenceBound(**{setting: value})
