import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from ted_stream.pruning import HighestScores, SampledScores, Selection, SingleProcess, UniformSample, top_k_mask
from ted_stream.pruning.hashing import hash_ids
from ted_stream.pruning.selection import integers, kth_largest, search, select, sortable, unsortable
from ted_stream.testing import ThreadCommunicator, owned_ids, run_ranks

TINY = float(np.float32(1e-45))  # the smallest denormal
HUGE = float(np.finfo(np.float32).max)
ADVERSARIAL = [0.0, -0.0, TINY, -TINY, 1e-40, -1e-40, 1.0, -1.0, 1.0000001, 2.0, HUGE, -HUGE, math.inf, -math.inf]


def _marked(keys: NDArray[np.float32], k: int, *, seed: int, world_size: int) -> NDArray[np.bool_]:
    """The marks of all ranks, in the order of ids."""

    def work(comm: ThreadCommunicator):
        ids = owned_ids(len(keys), comm.rank, world_size)
        first = sum(len(owned_ids(len(keys), rank, world_size)) for rank in range(comm.rank))
        assert not len(ids) or first == ids[0]
        return top_k_mask(keys[ids], k, first_id=first, seed=seed, communicator=comm)

    return np.concatenate(run_ranks(world_size, work))


def _sorted_top_k(keys: NDArray[np.float32], k: int, *, seed: int) -> set[int]:
    """The ids of the k largest (key, hash of id)."""
    hashes = [int(h) for h in hash_ids(np.arange(len(keys)), seed=seed)]
    return set(sorted(range(len(keys)), key=lambda i: (float(keys[i]), hashes[i]), reverse=True)[:k])


_KEY = st.one_of(st.sampled_from(ADVERSARIAL), st.floats(allow_nan=False, width=32))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_top_k_equals_sorting_the_gathered_keys(data):
    pool = data.draw(st.lists(_KEY, min_size=1, max_size=12))  # few different values: many ties
    size = data.draw(st.integers(1, 40))
    keys = np.array(data.draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size)), np.float32)
    k = data.draw(st.integers(0, size))
    seed = data.draw(st.integers(-3, 2**64))
    expected = _sorted_top_k(keys, k, seed=seed)
    for world_size in (1, 2, 3, 4):
        mask = _marked(keys, k, seed=seed, world_size=world_size)
        assert mask.dtype == np.bool_
        assert set(np.flatnonzero(mask).tolist()) == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "keys",
    [
        [1.5] * 11,
        [0.0, -0.0] * 6,
        [TINY, -TINY, 0.0, -0.0, 2 * TINY] * 2,
        [math.inf] * 3 + [-math.inf] * 3 + [0.0],
        [-1.0, -2.0, -3.0, -HUGE, -TINY],
        [HUGE] + [TINY] * 9,
        [1.0, 1.0000001, 1.0000002] * 3,
        ADVERSARIAL,
        [3.0],  # three empty ranges
        [2.0, 2.0],
        [2.0, 1.0, 2.0],
    ],
)
def test_top_k_of_adversarial_keys_for_every_k(keys, world_size):
    array = np.array(keys, np.float32)
    for k in range(len(array) + 1):
        mask = _marked(array, k, seed=5, world_size=world_size)
        assert set(np.flatnonzero(mask).tolist()) == _sorted_top_k(array, k, seed=5)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("sampled", [100, 1 << 15])  # a rough guess of the threshold, and an exact one
def test_top_k_of_many_keys(world_size, sampled, monkeypatch):
    """Large ranks, binned in several chunks; half of the keys tie."""
    monkeypatch.setattr("ted_stream.pruning.selection._CHUNK", 1000)
    monkeypatch.setattr("ted_stream.pruning.selection._SAMPLED", sampled)
    rng = np.random.default_rng(0)
    keys = rng.standard_normal(20_000).astype(np.float32)
    keys[rng.permutation(20_000)[:10_000]] = 0.25
    for k in (1, 7_000, 12_345, 19_999):
        mask = _marked(keys, k, seed=9, world_size=world_size)
        assert set(np.flatnonzero(mask).tolist()) == _sorted_top_k(keys, k, seed=9)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("seen", [-1e9, 1e9, -math.inf, math.inf])
def test_top_k_where_the_sample_misleads(world_size, seen, monkeypatch):
    """Every sampled key is ``seen``, so that the guess lies above or below the threshold."""
    monkeypatch.setattr("ted_stream.pruning.selection._SAMPLED", 10)
    keys = np.random.default_rng(1).permutation(4000).astype(np.float32) - 2000
    for rank in range(world_size):
        mine = owned_ids(4000, rank, world_size)
        keys[mine[:: len(mine) // 10]] = seen
    for k in (1, 100, 1999, 3000, 3999):
        mask = _marked(keys, k, seed=2, world_size=world_size)
        assert set(np.flatnonzero(mask).tolist()) == _sorted_top_k(keys, k, seed=2)


@pytest.mark.parametrize("selection", [HighestScores(), SampledScores(), UniformSample()], ids=repr)
@pytest.mark.parametrize("scores", ["lognormal", "equal", "unmeasured", "two values"])
def test_selection_takes_less_than_twelve_bytes_per_sample(selection, scores):
    """The scores take 4; the keys, the mask and all that comes and goes share the rest."""
    size = 1 << 21
    rng = np.random.default_rng(0)
    array = {
        "lognormal": lambda: rng.lognormal(size=size),
        "equal": lambda: np.ones(size),
        "unmeasured": lambda: np.full(size, np.nan),
        "two values": lambda: rng.integers(1, 3, size),
    }[scores]().astype(np.float32)
    tracemalloc.start()
    mask = select(selection, array, size // 3, first_id=0, epoch=0, seed=0, communicator=SingleProcess())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.sum() == size // 3
    assert peak < 8 * size


def test_ties_depend_on_the_seed_never_on_position():
    keys = np.zeros(1000, np.float32)
    masks = [_marked(keys, 300, seed=seed, world_size=1) for seed in (0, 1)]
    assert not np.array_equal(masks[0], masks[1])
    for mask in masks:
        ids = np.flatnonzero(mask)
        # The mean of 300 of the first 1000 integers: 499.5 ± 14; the first or last 300 would be off by 350.
        assert abs(ids.mean() - 499.5) < 60


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [0, 2, 5])
def test_nan_is_refused_on_every_rank(world_size, k):
    keys = np.array([1.0, 2.0, math.nan, 3.0, math.nan], np.float32)

    def work(comm: ThreadCommunicator) -> str:
        ids = owned_ids(5, comm.rank, world_size)
        first = int(ids[0]) if len(ids) else 0
        with pytest.raises(ValueError, match="NaN") as caught:
            top_k_mask(keys[ids], k, first_id=first, seed=0, communicator=comm)
        return str(caught.value)

    messages = run_ranks(world_size, work)
    assert len(set(messages)) == 1
    assert "2 of 5" in messages[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("k", [-1, 4, 1000])
def test_k_out_of_range_is_refused_on_every_rank(world_size, k):
    keys = np.array([1.0, 2.0, 3.0], np.float32)

    def work(comm: ThreadCommunicator) -> str:
        ids = owned_ids(3, comm.rank, world_size)
        with pytest.raises(ValueError, match="k is") as caught:
            top_k_mask(keys[ids], k, first_id=0, seed=0, communicator=comm)
        return str(caught.value)

    for message in run_ranks(world_size, work):
        assert f"k is {k}" in message
        assert "[0, 3]" in message


def test_sortable_is_monotone_and_undone():
    values = np.array(sorted(ADVERSARIAL), np.float32)
    images = sortable(values)
    assert images.dtype == np.uint32
    assert images[values == 0].tolist() == [1 << 31] * 2  # no gap between the zeros, which no bracket may divide
    # Equal floats have equal images, smaller ones smaller.
    for (a, x), (b, y) in [((values[i], images[i]), (values[i + 1], images[i + 1])) for i in range(len(values) - 1)]:
        assert (x == y) if a == b else (x < y)
    assert [unsortable(int(image)) for image in images] == values.tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_search_of_64_bits(values, data):
    k = data.draw(st.integers(1, len(values)))
    bound = st.one_of(st.sampled_from(values), st.integers(0, 2**64 - 1))
    low, high = sorted([data.draw(bound), data.draw(bound)])
    guess = data.draw(st.sampled_from([None, (low, high), (low, low)]))
    storable = data.draw(st.integers(0, 20))
    array = np.array(values, np.uint64)
    descending = sorted(values, reverse=True)
    kth = descending[k - 1]
    expected = (kth, descending[:k].count(kth), values.count(kth))
    for world_size in (1, 3):
        for exact in (True, False):

            def work(comm: ThreadCommunicator, exact: bool = exact):
                mine = integers(array[comm.rank :: comm.world_size])
                domain = (0, 2**64 - 1)
                return search(mine, k, comm, domain=domain, guess=guess, exact=exact, storable=storable)

            for found in run_ranks(world_size, work):
                if exact or found[1] < found[2]:
                    assert found == expected
                else:  # the bracket is wanted whole: its lower bound is as good a threshold as the value itself
                    assert [v for v in descending if v >= found[0]] == descending[:k]


def test_search_from_every_guess():
    array = np.array([2, 3, 3, 5, 8, 8, 8], np.uint32)
    for k, kth in enumerate(sorted(array.tolist(), reverse=True), start=1):
        for low in range(10):
            for high in range(low, 10):
                found = search(integers(array), k, SingleProcess(), domain=(0, 9), guess=(low, high), exact=True)
                assert found[0] == kth


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(_KEY | st.just(math.nan), min_size=1, max_size=30), st.data())
def test_kth_largest_passes_over_nan(values, data):
    array = np.array(values, np.float32)
    descending = np.sort(array[~np.isnan(array)])[::-1]
    ks = data.draw(st.lists(st.integers(1, len(descending)), max_size=3)) if len(descending) else []
    for world_size in (1, 3):

        def work(comm: ThreadCommunicator) -> list[float]:
            return kth_largest(array[comm.rank :: comm.world_size], ks, comm)

        assert run_ranks(world_size, work) == [[descending[k - 1] for k in ks]] * world_size


# What the selections prefer


def _kept(selection: Selection, scores: Sequence[float], k: int, *, epoch: int) -> NDArray[np.bool_]:
    array = np.array(scores, np.float32)
    keys = selection.keys(array, np.arange(len(array)), epoch)
    assert keys.dtype == np.float32
    assert keys.shape == array.shape
    mask = select(selection, array, k, first_id=0, epoch=epoch, seed=0, communicator=SingleProcess())
    assert np.array_equal(mask, top_k_mask(keys, k, first_id=0, seed=0, communicator=SingleProcess()))
    return mask


SELECTIONS = [HighestScores(), SampledScores(seed=1), SampledScores(temperature=0.01), UniformSample(seed=1)]


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_keys_are_free_of_nan_and_independent_of_the_partition(selection):
    scores = np.array([0.0, TINY, 1.0, HUGE, math.nan, 0.5, math.nan, 1e-30] * 4, np.float32)
    ids = np.arange(len(scores)) + 100
    keys = selection.keys(scores, ids, 3)
    assert not np.isnan(keys).any()
    pieces = [selection.keys(scores[part], ids[part], 3) for part in np.array_split(np.arange(len(ids)), 5)]
    assert np.array_equal(np.concatenate(pieces), keys)
    shuffled = np.random.default_rng(0).permutation(len(ids))
    assert np.array_equal(selection.keys(scores[shuffled], ids[shuffled], 3), keys[shuffled])


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_selects_the_same_for_every_world_size_and_chunk(selection, monkeypatch):
    scores = np.random.default_rng(6).exponential(size=1000).astype(np.float32)
    scores[::7] = math.nan
    whole = _kept(selection, scores.tolist(), 300, epoch=4)
    monkeypatch.setattr("ted_stream.pruning.selection._CHUNK", 64)
    for world_size in (1, 2, 3, 4):

        def work(comm: ThreadCommunicator):
            ids = owned_ids(1000, comm.rank, comm.world_size)
            first = int(ids[0])
            return select(selection, scores[ids], 300, first_id=first, epoch=4, seed=0, communicator=comm)

        assert np.array_equal(np.concatenate(run_ranks(world_size, work)), whole)


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_keeps_exactly_k(selection):
    scores = np.random.default_rng(1).exponential(size=200)
    scores[::3] = 0.0
    scores[::7] = math.nan
    for k in (0, 1, 77, 199, 200):
        for epoch in range(3):
            assert _kept(selection, scores.tolist(), k, epoch=epoch).sum() == k


@pytest.mark.parametrize("selection", SELECTIONS[:3], ids=repr)
def test_unmeasured_samples_come_first(selection):
    scores = [math.nan if i % 5 == 0 else 1e6 for i in range(50)]
    for epoch in range(20):
        assert np.flatnonzero(_kept(selection, scores, 10, epoch=epoch)).tolist() == list(range(0, 50, 5))
        more = _kept(selection, scores, 25, epoch=epoch)
        assert more[::5].all()


def test_zero_scores_come_last():
    scores = [0.0 if i % 2 else 1e-30 for i in range(50)]
    for epoch in range(20):
        kept = _kept(SampledScores(), scores, 25, epoch=epoch)
        assert np.flatnonzero(kept).tolist() == list(range(0, 50, 2))


def test_highest_scores_are_the_scores():
    scores = np.random.default_rng(2).permutation(100).astype(float)
    kept = _kept(HighestScores(), scores.tolist(), 30, epoch=0)
    assert sorted(scores[kept]) == list(range(70, 100))
    assert np.array_equal(kept, _kept(HighestScores(), scores.tolist(), 30, epoch=1))


def test_a_cold_sample_is_the_top_k():
    scores = (1.5 ** np.random.default_rng(3).permutation(60)).tolist()
    highest = _kept(HighestScores(), scores, 20, epoch=0)
    for epoch in range(10):
        assert np.array_equal(_kept(SampledScores(temperature=1e-4), scores, 20, epoch=epoch), highest)
    # …which at τ = 1 it is not.
    warm = [_kept(SampledScores(temperature=1.0), scores, 20, epoch=epoch) for epoch in range(10)]
    assert any(not np.array_equal(mask, highest) for mask in warm)


def _uniformity(selection: Selection, scores: Sequence[float], k: int, epochs: int) -> float:
    """Pearson's statistic of the inclusion counts, χ² with N - 1 degrees of freedom if every k-set is as likely."""
    size = len(scores)
    counts = np.sum([_kept(selection, scores, k, epoch=epoch) for epoch in range(epochs)], axis=0)
    p = k / size
    return float((((counts - epochs * p) ** 2) / (epochs * p * (1 - p))).sum() * (size - 1) / size)


def test_a_hot_sample_is_uniform():
    scores = np.exp(np.random.default_rng(4).uniform(-3, 3, size=60)).tolist()
    # Neither too uneven, nor too even: near zero would mean that the epochs depend on each other.
    floor, limit = chi2.ppf([0.001, 0.999], df=59)
    assert floor < _uniformity(SampledScores(temperature=1e6, seed=11), scores, 15, 500) < limit
    assert floor < _uniformity(UniformSample(seed=11), scores, 15, 500) < limit
    # The statistic sees what is not uniform.
    assert _uniformity(SampledScores(temperature=10, seed=11), scores, 15, 500) > limit


def _successive_sampling(high: int, low: int, ratio: float, k: int) -> NDArray[np.float64]:
    """P(h of the k draws are high) when each draw takes a remaining high item with weight ``ratio``, a low with 1."""
    chances = np.zeros(k + 1)
    chances[0] = 1.0
    for draw in range(k):
        following = np.zeros(k + 1)
        for h in range(draw + 1):
            highs_left, lows_left = high - h, low - (draw - h)
            p = ratio * highs_left / (ratio * highs_left + lows_left)
            following[h + 1] += chances[h] * p
            following[h] += chances[h] * (1 - p)
        chances = following
    return chances


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_is_successive_without_replacement(temperature):
    """Scores 4 and 1: each draw prefers the remaining high ones by 4^(1/τ), and their share falls as they go."""
    high, low, k, epochs = 20, 40, 24, 1000
    scores = [4.0 if i % 3 == 0 else 1.0 for i in range(high + low)]
    is_high = np.array(scores) == 4.0
    selection = SampledScores(temperature=temperature, seed=23)
    drawn = np.array([_kept(selection, scores, k, epoch=epoch)[is_high].sum() for epoch in range(epochs)])
    chances = _successive_sampling(high, low, 4.0 ** (1 / temperature), k)
    values = np.arange(k + 1)
    mean = float(chances @ values)
    variance = float(chances @ (values - mean) ** 2)
    assert abs(drawn.mean() - mean) < 4 * math.sqrt(variance / epochs)
    assert drawn.var() == pytest.approx(variance, rel=0.2)
    # With replacement the mean would differ by far more than the bound.
    ratio = 4.0 ** (1 / temperature)
    assert abs(k * ratio * high / (ratio * high + low) - mean) > 10 * math.sqrt(variance / epochs)


def test_the_reference_agrees_with_a_simulation():
    rng = np.random.default_rng(5)
    p = np.array([4.0] * 20 + [1.0] * 40) / 120
    drawn = [(rng.choice(60, size=24, replace=False, p=p) < 20).sum() for _ in range(2000)]
    chances = _successive_sampling(20, 40, 4.0, 24)
    assert chances.sum() == pytest.approx(1)
    assert np.mean(drawn) == pytest.approx(float(chances @ np.arange(25)), abs=0.15)


def test_samples_are_fresh_per_epoch_and_seed_and_reproducible():
    scores = [1.0] * 400
    for kind in (UniformSample, SampledScores):
        first = _kept(kind(seed=3), scores, 100, epoch=0)
        assert np.array_equal(first, _kept(kind(seed=3), scores, 100, epoch=0))
        others = [_kept(kind(seed=3), scores, 100, epoch=epoch) for epoch in range(1, 40)]
        others += [_kept(kind(seed=4), scores, 100, epoch=0)]
        overlaps = np.array([(first & other).sum() for other in others])
        # Hypergeometric: 100·100/400 = 25 ± 3.75.
        assert overlaps.max() < 25 + 5 * 3.75
        assert overlaps.min() > 25 - 5 * 3.75
        assert abs(overlaps.mean() - 25) < 4 * 3.75 / math.sqrt(len(overlaps))


def test_uniform_sample_ignores_the_scores():
    low, high = [0.0] * 50, [math.nan] * 25 + [9.0] * 25
    for epoch in range(5):
        masks = [_kept(UniformSample(seed=2), scores, 20, epoch=epoch) for scores in (low, high)]
        assert np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=rf"temperature is {temperature}.*positive.*highest"):
        SampledScores(temperature=temperature)


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_repr_rebuilds_a_selection(selection):
    assert eval(repr(selection)) == selection
