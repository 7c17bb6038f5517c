"""OrderDP against its rule, written down again in numpy."""

import numpy as np
import pytest
from owners import owned_with

from ted_stream.methods.order_dp import OrderDP
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.pruning.hashing import hash_ids, uniform

SEED = 5
EXAMPLES = (
    OrderDP(0.6),
    OrderDP(0.3625, pool=0.75),
    OrderDP(0.7, pool=0.3, schedule="roller-coaster", annealing=0.2),
    OrderDP(0.5, pool=1.0),
)


@pytest.mark.parametrize("num_samples", [1, 2, 10, 607])
@pytest.mark.parametrize("method", EXAMPLES, ids=repr)
def test_is_the_rule(method: OrderDP, num_samples: int) -> None:
    """A uniform pool of ⌈pool·N⌉ samples, or of as many as are kept; the q highest latest losses of it."""
    num_epochs = 12
    losses = np.random.default_rng(num_samples).gamma(2.0, size=(num_epochs, num_samples)).astype(np.float32)
    share = 1 - method.prune_ratio / 2 if method.pool is None else method.pool
    store = ScoreStore(num_samples, method.running())
    last = np.full(num_samples, np.inf)
    ids = np.arange(num_samples)
    for epoch in range(num_epochs):
        q = num_kept(method.keep_ratio(epoch, num_epochs), num_samples)
        draws = uniform(ids, seed=SEED, epoch=epoch)
        pool = np.argsort(-draws)[: max(q, int(np.ceil(round(share * num_samples, 6))))]
        ranked = sorted(pool.tolist(), key=lambda sample: (last[sample], hash_ids(ids, seed=SEED)[sample]))
        owned = Owned(store, epoch=epoch, seed=SEED)
        chosen = method.choose(owned, epoch, q)
        kept = np.flatnonzero(chosen.keep)
        assert kept.tolist() == sorted(ranked[-q:])
        assert method.weigh(owned, chosen, 0.5) == 1.0
        last[kept] = losses[epoch, kept]
        measured = last[kept]
        store.update(Measurements(ids=kept, importance=measured, steps=np.zeros(q, int)), epoch=epoch)


def test_the_share_left_out_is_exact_in_every_epoch() -> None:
    assert {OrderDP(0.7).keep_ratio(epoch, 20) for epoch in range(20)} == {1 - 0.7}


@pytest.mark.long
@pytest.mark.parametrize("pool", [0.6, 0.4])
def test_is_kept_as_often_as_its_rank_says(pool: float) -> None:
    """20 samples in order: one is kept if it is in the pool, with at most q - 1 that are harder."""
    epochs, n, q = 4000, 20, 8
    size = round(pool * n)
    method = OrderDP(1 - q / n, pool=pool)
    times = np.zeros(n)
    for epoch in range(epochs):
        times += method.choose(owned_with(np.arange(n), epoch=epoch), epoch, q).keep
    pools = np.argsort(np.random.default_rng(0).random((100_000, n)), axis=1)[:, :size]
    expected = np.bincount(np.sort(pools, axis=1)[:, -q:].ravel(), minlength=n) / len(pools)
    bounds = 4.5 * np.sqrt(expected * (1 - expected) * (1 / epochs + 1 / len(pools)))
    assert (np.abs(times / epochs - expected) <= bounds + 1e-12).all()


def test_the_limits_of_the_pool_are_highest_and_uniform() -> None:
    scores = np.random.default_rng(0).permutation(30).astype(float)
    highest = OrderDP(0.7, pool=1.0).choose(owned_with(scores), 0, 9).keep
    assert sorted(scores[highest]) == list(range(21, 30))
    drawn = OrderDP(0.7, pool=0.3).choose(owned_with(scores), 0, 9).keep
    assert np.array_equal(drawn, OrderDP(0.7, pool=0.3).choose(owned_with(-scores), 0, 9).keep)


def test_equal_losses_give_the_number_asked_for() -> None:
    for k in range(1, 9):
        assert np.count_nonzero(OrderDP(0.5).choose(owned_with(np.ones(8)), 2, k).keep) == k


@pytest.mark.parametrize("pool", [0.0, 1.1, float("nan"), 0.29])
def test_refuses_a_pool_that_cannot_hold_what_is_kept(pool: float) -> None:
    with pytest.raises(ValueError, match=r"^pool is"):
        OrderDP(0.7, pool=pool)
