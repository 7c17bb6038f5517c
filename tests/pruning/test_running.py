import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ted_stream.pruning import ExponentialMean, Measurements, ScoreStore, ScoreUpdate
from ted_stream.pruning.running import RunningMean
from ted_stream.pruning.selection import quantiles_of
from ted_stream.testing import ThreadCommunicator, owned_ids, run_ranks

Epoch = list[tuple[int, float, int]]  # (id, importance, step)


def _measurements(rows: Epoch) -> Measurements:
    ids, importance, steps = zip(*rows, strict=True) if rows else ((), (), ())
    return Measurements(
        ids=np.array(ids, np.int64), importance=np.array(importance, np.float64), steps=np.array(steps, np.int64)
    )


def _reference(num_samples: int, epochs: list[Epoch], alpha: float) -> list[float]:
    """Equation 19 on a dict, an epoch's repeats averaged."""
    scores: dict[int, np.float32] = {}
    for epoch in epochs:
        seen: dict[int, list[float]] = {}
        for sample, importance, _ in epoch:
            if math.isfinite(importance):
                seen.setdefault(sample, []).append(importance)
        for sample, values in seen.items():
            mean = math.fsum(values) / len(values)
            if sample in scores:
                mean = alpha * float(scores[sample]) + (1 - alpha) * mean
            scores[sample] = np.float32(mean)
    return [float(scores.get(sample, np.float32(math.nan))) for sample in range(num_samples)]


def _deal(epoch: Epoch, world_size: int, rng: np.random.Generator) -> list[Epoch]:
    """The rows in any order, on any rank; uneven, and possibly none."""
    shares: list[Epoch] = [[] for _ in range(world_size)]
    weights = rng.dirichlet(np.full(world_size, 0.5))
    for index in rng.permutation(len(epoch)):
        shares[rng.choice(world_size, p=weights)].append(epoch[index])
    return shares


def _run(
    num_samples: int,
    epochs: list[Epoch],
    *,
    world_size: int = 1,
    deal_seed: int = 0,
    running: ExponentialMean | None = None,
) -> tuple[np.ndarray, list[ScoreUpdate]]:
    """Scores gathered after all epochs, and rank 0's counts of each."""
    rng = np.random.default_rng(deal_seed)
    dealt = [_deal(epoch, world_size, rng) for epoch in epochs]

    def work(comm: ThreadCommunicator):
        store = ScoreStore(num_samples, running, communicator=comm)
        updates = [store.update(_measurements(shares[comm.rank])) for shares in dealt]
        return store.gather(), updates

    results = run_ranks(world_size, work)
    for gathered, updates in results:  # every rank sees the same
        np.testing.assert_array_equal(gathered, results[0][0])
        assert updates == results[0][1]
    return results[0]


def _random_epochs(seed: int, num_samples: int, num_epochs: int) -> list[Epoch]:
    """Importances are multiples of 2^-10, so that their float sums are exact in any order."""
    rng = np.random.default_rng(seed)
    epochs = []
    for _ in range(num_epochs):
        rows = int(rng.integers(0, 3 * num_samples))
        ids = rng.integers(0, num_samples, rows).tolist()
        importance = (rng.integers(0, 4096, rows) / 1024).tolist()
        epochs.append(list(zip(ids, importance, rng.integers(0, 6, rows).tolist(), strict=True)))
    return epochs


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_samples", [1, 2, 17, 64])
def test_equals_a_dict_for_every_world_size_and_dealing(num_samples, alpha):
    for seed in range(4):
        epochs = _random_epochs(seed, num_samples, 5)
        expected = np.array(_reference(num_samples, epochs, alpha), np.float32)
        for world_size in (1, 2, 3):
            running = ExponentialMean(alpha=alpha)
            scores, _ = _run(num_samples, epochs, world_size=world_size, deal_seed=seed, running=running)
            assert scores.dtype == np.float32
            np.testing.assert_array_equal(scores, expected)


def test_equation_19_by_hand():
    store = ScoreStore(4)
    assert np.isnan(store.gather()).all()
    assert store.num_unmeasured() == 4
    store.update(_measurements([(1, 2.0, 0), (3, 8.0, 0)]))
    np.testing.assert_array_equal(store.gather(), np.array([np.nan, 2, np.nan, 8], np.float32))
    store.update(_measurements([(1, 4.0, 0), (1, 1.0, 1), (1, 7.0, 2), (0, 0.0, 2)]))  # sample 1: mean 4
    np.testing.assert_allclose(store.gather(), [0, 0.9 * 2 + 0.1 * 4, np.nan, 8], rtol=1e-7)
    assert store.num_unmeasured() == 1


def test_measurements_that_are_not_finite_are_dropped_and_counted():
    epoch: Epoch = [(0, 1.0, 0), (0, math.inf, 0), (1, math.nan, 0), (2, -math.inf, 1), (3, 3.0, 1), (3, 5.0, 1)]
    for relative in (False, True):
        for world_size in (1, 2, 3):
            scores, updates = _run(5, [epoch], world_size=world_size, running=ExponentialMean(relative=relative))
            assert updates == [ScoreUpdate(measured=6, non_finite=3, updated=2)]
            assert np.isnan(scores).tolist() == [False, True, True, False, True]
            if not relative:
                assert scores[[0, 3]].tolist() == [1.0, 4.0]


def test_an_epoch_without_measurements_changes_nothing():
    for relative in (False, True):
        epochs: list[Epoch] = [[(0, 1.0, 0), (1, 3.0, 0)], []]
        before, _ = _run(3, epochs[:1], world_size=2, running=ExponentialMean(relative=relative))
        after, updates = _run(3, epochs, world_size=2, running=ExponentialMean(relative=relative))
        np.testing.assert_array_equal(before, after)
        assert updates[1] == ScoreUpdate(measured=0, non_finite=0, updated=0)


@pytest.mark.parametrize("wrong", [-1, 5, 10**12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ids_of_another_dataset_are_refused_on_every_rank(world_size, wrong):
    def work(comm: ThreadCommunicator) -> str:
        store = ScoreStore(5, communicator=comm)
        rows: Epoch = [(wrong, 1.0, 0)] if comm.rank == world_size - 1 else [(0, 1.0, 0)]
        with pytest.raises(ValueError, match="outside") as caught:
            store.update(_measurements(rows))
        assert np.isnan(store.scores).all()  # nothing half done
        return str(caught.value)

    messages = run_ranks(world_size, work)
    assert all("1 measured sample ids lie outside [0, 5)" in message for message in messages)
    assert str(wrong) in messages[-1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 6))
def test_ranges_are_the_owners(num_samples, world_size):
    def work(comm: ThreadCommunicator):
        store = ScoreStore(num_samples, communicator=comm)
        return len(store.scores), store.first_id

    results = run_ranks(world_size, work)
    owned = [owned_ids(num_samples, rank, world_size).tolist() for rank in range(world_size)]
    for ids, (owns, first_id) in zip(owned, results, strict=True):
        assert list(range(first_id, first_id + owns)) == ids or not ids
        assert owns == len(ids)


@pytest.mark.parametrize("relative", [False, True])
def test_a_fold_takes_memory_by_the_measurement(relative):
    size = 1 << 18
    rng = np.random.default_rng(0)
    store = ScoreStore(size, ExponentialMean(relative=relative))
    measured = Measurements(ids=rng.permutation(size), importance=rng.random(size), steps=np.arange(size) // 1024)
    tracemalloc.start()
    store.update(measured)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 72 * size  # three arrays of the fold, their order, and what the scores are made of


def test_repeats_are_summed_in_an_order_of_their_own():
    """Sums that depend on the order of terms: the same bits however ranks and steps are dealt."""
    epoch: Epoch = [(0, value, 0) for value in (1e17, 3.0, -1e17, 5.0, 0.1)] + [(1, 0.1, 0), (1, 0.7, 1)]
    results = [
        _run(2, [epoch], world_size=world_size, deal_seed=deal)[0] for world_size in (1, 2, 3) for deal in range(8)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# Relative scores


def _reference_relative(num_samples: int, epochs: list[Epoch], alpha: float) -> list[float]:
    """Each importance over the bias-corrected average, decay 0.9, of the means of all steps so far."""
    means: list[float] = []  # of every step that measured something, over all epochs
    divided: list[Epoch] = []
    for epoch in epochs:
        rows: Epoch = []
        for step in sorted({step for _, _, step in epoch}):
            at_step = [(sample, value) for sample, value, s in epoch if s == step and math.isfinite(value)]
            if not at_step:
                continue
            means.append(math.fsum(value for _, value in at_step) / len(at_step))
            weights = [0.9 ** (len(means) - 1 - i) for i in range(len(means))]
            average = math.fsum(w * m for w, m in zip(weights, means, strict=True)) / math.fsum(weights)
            rows += [(sample, value / (average or 1.0), step) for sample, value in at_step]
        divided.append(rows)
    return _reference(num_samples, divided, alpha)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_relative_scores_follow_the_running_mean(world_size):
    for seed in range(4):
        epochs = _random_epochs(seed, 20, 4)
        epochs[1] = [row for row in epochs[1] if row[2] not in (2, 5)]  # steps that measured nothing
        epochs[2].append((3, math.inf, 0))
        scores, _ = _run(20, epochs, world_size=world_size, deal_seed=seed, running=ExponentialMean(relative=True))
        np.testing.assert_allclose(scores, _reference_relative(20, epochs, 0.9), rtol=3e-7)


def test_relative_by_hand():
    store = ScoreStore(4, ExponentialMean(relative=True))
    store.update(_measurements([(0, 1.0, 0), (1, 3.0, 0), (2, 6.0, 1)]))
    # Step 0: mean 2. Step 1: (0.9·2 + 6) / 1.9. The next epoch goes on from there.
    second = (0.9 * 2 + 6) / 1.9
    np.testing.assert_allclose(store.gather()[:3], [1 / 2, 3 / 2, 6 / second], rtol=1e-6)
    store.update(_measurements([(3, 5.0, 0)]))
    third = (0.81 * 2 + 0.9 * 6 + 5) / (0.81 + 0.9 + 1)
    np.testing.assert_allclose(store.gather()[3], 5 / third, rtol=1e-6)


def test_relative_scores_are_bit_identical_for_every_world_size():
    for seed in range(4):
        epochs = _random_epochs(seed, 30, 4)
        results = [
            _run(30, epochs, world_size=world_size, deal_seed=deal, running=ExponentialMean(relative=True))[0]
            for world_size, deal in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
        ]
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


# From the smallest denormal to the largest float32, beyond which measurements are dropped.
_IMPORTANCE = st.one_of(
    st.sampled_from([0.0, 5e-324, 1e-310, 0.1, 1e17, float(np.finfo(np.float32).max), math.inf, math.nan]),
    st.floats(0, 2.0**127),
)


@pytest.mark.long
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_relative_scores_and_running_mean_ignore_how_measurements_are_dealt(data):
    row = st.tuples(st.integers(0, 7), _IMPORTANCE, st.integers(0, 3))
    epochs: list[Epoch] = data.draw(st.lists(st.lists(row, max_size=30), min_size=1, max_size=3))
    results: list[bytes] = []
    for world_size in (1, 1, 2, 3, 4):
        rank = st.integers(0, world_size - 1)
        dealt: list[list[Epoch]] = []
        for epoch in epochs:
            shares: list[Epoch] = [[] for _ in range(world_size)]
            for measurement in data.draw(st.permutations(epoch)):
                shares[data.draw(rank)].append(measurement)
            dealt.append(shares)

        def work(comm: ThreadCommunicator, dealt: list[list[Epoch]] = dealt) -> bytes:
            store = ScoreStore(8, ExponentialMean(relative=True), communicator=comm)
            for shares in dealt:
                store.update(_measurements(shares[comm.rank]))
            mean = store.running_mean
            return store.gather().tobytes() + np.array([mean.total, mean.weight]).tobytes()

        results += run_ranks(world_size, work)
    assert len(set(results)) == 1


@pytest.mark.parametrize("scale", [2.0**-1060, 1e-30, 1.0, 1e30])
def test_means_of_steps_are_sums_of_all_their_importances(scale):
    """Many terms of one step, at scales apart by more than an integer has digits from step to step."""
    rng = np.random.default_rng(0)
    steps = np.repeat([0, 1, 2], 5000)
    importance = rng.lognormal(sigma=3, size=15_000) * np.array([1.0, 1e-8, 1e3])[steps] * scale
    store = ScoreStore(15_000, ExponentialMean(relative=True))
    store.update(Measurements(ids=np.arange(15_000), importance=importance, steps=steps))
    expected = RunningMean()
    for step in range(3):
        expected.update(math.fsum(importance[steps == step]) / 5000)
    # Denormals have few digits of their own.
    assert store.running_mean.total == pytest.approx(expected.total, rel=1e-13 if scale > 1e-300 else 1e-3)


def test_relative_scores_know_no_scale():
    epochs = _random_epochs(7, 25, 4)
    relative = ExponentialMean(relative=True)
    base, _ = _run(25, epochs, running=relative)
    plain, _ = _run(25, epochs, running=ExponentialMean(relative=False))

    def scaled(factor: float) -> list[Epoch]:
        return [[(sample, value * factor, step) for sample, value, step in epoch] for epoch in epochs]

    assert np.array_equal(_run(25, scaled(2.0**-20), running=relative)[0], base, equal_nan=True)  # exact
    np.testing.assert_allclose(_run(25, scaled(3.7e5), running=relative)[0], base, rtol=1e-6)
    assert not np.allclose(_run(25, scaled(3.7e5), running=ExponentialMean(relative=False))[0], plain, equal_nan=True)


def test_relative_takes_out_drift():
    """A sample of twice the mean scores 2, however the mean grows within and over epochs; plain scores drift."""
    epochs: list[Epoch] = [
        [
            row
            for step in range(50)
            for row in [
                (2 * step, 1.5 * 1.002 ** (50 * e + step), step),
                (2 * step + 1, 0.5 * 1.002 ** (50 * e + step), step),
            ]
        ]
        for e in range(6)
    ]
    relative, _ = _run(100, epochs, running=ExponentialMean(relative=True))
    # The average lags by up to 9 steps of 0.2 %: within 2 %.
    np.testing.assert_allclose(relative[0::2], 1.5, rtol=0.02)
    np.testing.assert_allclose(relative[1::2], 0.5, rtol=0.02)
    plain, _ = _run(100, epochs[:1])
    assert plain[98] / plain[0] > 1.09


def test_all_importances_zero_stay_zero():
    scores, _ = _run(3, [[(0, 0.0, 0), (1, 0.0, 1)]], running=ExponentialMean(relative=True))
    np.testing.assert_array_equal(scores, np.array([0, 0, np.nan], np.float32))


def test_running_mean_is_bias_corrected():
    mean = RunningMean()
    values = [5.0, 1.0, 9.0, 2.0]
    for n in range(1, 5):
        weights = [0.9 ** (n - 1 - i) for i in range(n)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert mean.update(values[n - 1]) == pytest.approx(expected, rel=1e-13)


# State


@pytest.mark.long
@pytest.mark.parametrize("relative", [False, True])
def test_state_goes_round_between_world_sizes(relative):
    epochs = _random_epochs(3, 23, 6)
    expected, _ = _run(23, epochs, running=ExponentialMean(relative=relative))

    def first_half(comm: ThreadCommunicator):
        store = ScoreStore(23, ExponentialMean(relative=relative), communicator=comm)
        for epoch in epochs[:3]:
            store.update(_measurements(epoch[comm.rank :: comm.world_size]))
        return store.state_dict(), store.gather()

    def second_half(state: dict) -> Callable[[ThreadCommunicator], tuple[np.ndarray, np.ndarray]]:
        def work(comm: ThreadCommunicator):
            store = ScoreStore(23, ExponentialMean(relative=relative), communicator=comm)
            store.load_state_dict(state)
            loaded = store.gather()
            for epoch in epochs[3:]:
                store.update(_measurements(epoch[comm.rank :: comm.world_size]))
            return loaded, store.gather()

        return work

    for saved in (1, 2, 3):
        states = run_ranks(saved, first_half)
        state = states[0][0]  # Composer hands rank 0's state to all
        untouched = state["columns"]["score"].clone()
        for resumed in (1, 2, 3, 30):  # 30 ranks for 23 samples: some own none
            for loaded, final in run_ranks(resumed, second_half(state)):
                np.testing.assert_array_equal(loaded, states[0][1])
                np.testing.assert_array_equal(final, expected)
        assert torch.equal(state["columns"]["score"], untouched)  # the stores took copies


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_for_rank_zero_reaches_no_other_rank(world_size):
    (epoch,) = _random_epochs(5, 23, 1)

    def work(comm: ThreadCommunicator):
        store = ScoreStore(23, communicator=comm)
        store.update(_measurements(epoch[comm.rank :: comm.world_size]))
        return store.gather_on_rank_zero(), store.state_dict(everywhere=False), store.state_dict(), store.gather()

    (first, state, whole, scores), *others = run_ranks(world_size, work)
    assert first is not None
    np.testing.assert_array_equal(first, scores)
    assert state["running_mean"] == whole["running_mean"]
    assert state["columns"].keys() == whole["columns"].keys()
    assert all(torch.equal(column, whole["columns"][name]) for name, column in state["columns"].items())
    for scores, state, *_ in others:
        assert scores is None
        assert state["columns"] == {}


def test_state_is_a_snapshot():
    store = ScoreStore(3)
    store.update(_measurements([(0, 1.0, 0)]))
    state = store.state_dict()
    store.update(_measurements([(0, 9.0, 0), (1, 9.0, 0)]))
    scores = state["columns"]["score"].numpy().view(np.float32)
    assert scores[0] == 1.0
    assert math.isnan(scores[1])


@pytest.mark.parametrize("size", [4, 6])
def test_state_of_another_dataset_is_refused(size):
    state = ScoreStore(size).state_dict()
    store = ScoreStore(5)
    with pytest.raises(ValueError, match=f"{size} samples.* 5") as caught:
        store.load_state_dict(state)
    assert "Resume with the dataset" in str(caught.value)


# Quantiles


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_quantiles_are_numpys_inverted_cdf(world_size):
    probabilities = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
    rng = np.random.default_rng(8)
    for count in (1, 2, 3, 10, 101):
        values = rng.standard_normal(count).astype(np.float32)
        values[rng.permutation(count)[: count // 3]] = 0.5
        epoch: Epoch = [
            (int(sample), float(value), 0) for sample, value in zip(rng.permutation(150)[:count], values, strict=True)
        ]

        def work(comm: ThreadCommunicator, epoch: Epoch = epoch):
            store = ScoreStore(150, communicator=comm)
            store.update(_measurements(epoch[comm.rank :: comm.world_size]))
            return quantiles_of(store.scores, probabilities, comm), store.num_unmeasured()

        expected = [float(np.quantile(values, p, method="inverted_cdf")) for p in probabilities]
        assert run_ranks(world_size, work) == [(expected, 150 - count)] * world_size


def test_quantiles_of_nothing():
    found = run_ranks(2, lambda comm: quantiles_of(ScoreStore(5, communicator=comm).scores, (0.5,), comm))
    assert np.shape(found) == (2, 1)
    assert np.isnan(found).all()


# Construction


@pytest.mark.parametrize("alpha", [1.0, -0.1, 1.5, math.nan])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha}.*\[0, 1\)"):
        ExponentialMean(alpha=alpha)


def test_no_samples():
    with pytest.raises(ValueError, match="num_samples is 0"):
        ScoreStore(0)


def test_measurements_concatenate():
    rows: Epoch = [(0, 1.0, 0), (1, 2.0, 1), (0, 3.0, 2)]
    joined = Measurements.concatenate([_measurements(rows[:2]), Measurements(), _measurements(rows[2:])])
    assert len(joined) == 3
    whole = _measurements(rows)
    for name in ("ids", "importance", "steps"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
        assert getattr(joined, name).dtype == getattr(whole, name).dtype
    assert len(replace(joined, ids=joined.ids[:1])) == 1
