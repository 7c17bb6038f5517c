"""ImportanceSampling against what its formulas say, and against counting."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from owners import owned_with

from ted_stream.methods import Chosen, ImportanceSampling
from ted_stream.pruning.hashing import uniform
from ted_stream.pruning.sampling import inclusion_probabilities, pareto_keys

DRAWS = 10_000
N, K = 60, 24
_RNG = np.random.default_rng(1)
POPULATIONS: dict[str, NDArray[Any]] = {
    "spread": _RNG.lognormal(size=N),
    "some certain": np.where(np.arange(N) < 5, 40.0, _RNG.uniform(0.5, 1.5, N)),
    "equal": np.ones(N),
    "many zeros": _RNG.lognormal(size=N) * (np.arange(N) % 4 == 0),
}
each_population = pytest.mark.parametrize("name", POPULATIONS)


def as_list(chosen: Chosen) -> list[float]:
    assert chosen.inclusion is not None
    return chosen.inclusion.tolist()


def sizes_of(scores: NDArray[Any], floor: float) -> NDArray[np.float64]:
    scores = np.asarray(scores, np.float32).astype(np.float64)
    return scores + floor * scores.mean()


def reference(sizes: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """min(1, c · size), with the c for which they sum to k, by bisection."""
    low, high = 0.0, k / sizes.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * sizes).sum() < k else (low, middle)
    return np.minimum(1, high * sizes)


@each_population
@pytest.mark.parametrize("floor", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("k", [1, 7, K, N - 1, N])
def test_probabilities_are_in_proportion_to_score_and_floor(name: str, floor: float, k: int) -> None:
    sizes = sizes_of(POPULATIONS[name], floor)
    chosen = ImportanceSampling(0.5, floor=floor).choose(owned_with(POPULATIONS[name]), 0, k)
    assert chosen.inclusion is not None
    assert chosen.inclusion.dtype == np.float32
    np.testing.assert_allclose(chosen.inclusion, reference(sizes, k), rtol=1e-6)
    assert chosen.inclusion.sum(dtype=np.float64) == pytest.approx(k, rel=1e-6)
    assert chosen.inclusion.max() <= 1
    assert np.count_nonzero(chosen.keep) == k
    # No sample is drawn more rarely than its floor allows: of all sizes, the mean of which is (1 + floor) means.
    assert chosen.inclusion.min() >= k / N * floor / (1 + floor) * (1 - 1e-6)


def draws_of(probabilities: NDArray[np.float64], seed: int) -> NDArray[np.bool_]:
    """(10^4, N) what the epochs of so many runs keep."""
    keys = np.stack([pareto_keys(probabilities, uniform(np.arange(N), seed=seed, epoch=e)) for e in range(DRAWS)])
    kept = np.zeros(keys.shape, np.bool_)
    np.put_along_axis(kept, np.argpartition(-keys, K - 1, axis=1)[:, :K], True, axis=1)
    return kept


@pytest.mark.long
@each_population
def test_samples_are_kept_as_often_as_their_probability_says(name: str) -> None:
    scores, seed = POPULATIONS[name], 3
    method = ImportanceSampling(0.5)
    probabilities = inclusion_probabilities(sizes_of(scores, method.floor), np.array([K]), owned_with(scores))
    kept = draws_of(probabilities, seed)
    for epoch in range(100):  # it is these that the method keeps
        chosen = method.choose(owned_with(scores, epoch=epoch, seed=seed), epoch, K)
        assert np.array_equal(chosen.keep, kept[epoch])
    deviations = kept.mean(0) - probabilities
    bounds = np.sqrt(probabilities * (1 - probabilities) / DRAWS)
    assert (np.abs(deviations) <= 4.5 * bounds + 1e-12).all(), "beyond what 1 in 2000 tables of 60 binomials shows"
    of_uncertain = bounds > 0
    standard = (deviations[of_uncertain] / bounds[of_uncertain]) ** 2
    assert standard.sum() < of_uncertain.sum() + 5 * np.sqrt(2 * of_uncertain.sum())
    assert len({row.tobytes() for row in kept}) > 0.99 * DRAWS, "every epoch draws anew"


@pytest.mark.quick("some certain")
@each_population
def test_the_weighted_sum_is_that_of_all_samples(name: str) -> None:
    """The mean of Σ x / π over the kept is Σ x of all: the expected gradient is full data's."""
    probabilities = inclusion_probabilities(
        sizes_of(POPULATIONS[name], 0.1), np.array([K]), owned_with(POPULATIONS[name])
    )
    kept = draws_of(probabilities, seed=8)
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=N), POPULATIONS[name] * rng.normal(1.0, 0.5, size=N), np.ones(N)):
        sums = (kept * (values / probabilities)).sum(1)
        error = sums.std() / np.sqrt(DRAWS)
        # Pareto's probabilities are asymptotic: to about 1e-3 here.
        assert abs(sums.mean() - values.sum()) < 4.5 * error + 1e-3 * np.abs(values).sum()


@each_population
def test_weights_are_one_over_the_probability_with_mean_one(name: str) -> None:
    method, owned = ImportanceSampling(0.5), owned_with(POPULATIONS[name])
    chosen = method.choose(owned, 0, K)
    weights = method.weigh(owned, chosen, K / N)
    assert weights.dtype == np.float32
    assert weights.mean(dtype=np.float64) == pytest.approx(1, rel=1e-6)
    probabilities = reference(sizes_of(POPULATIONS[name], method.floor), K)[chosen.keep]
    np.testing.assert_allclose(weights, (1 / probabilities) / (1 / probabilities).mean(), rtol=1e-5)


def test_a_sample_never_measured_counts_as_the_largest() -> None:
    scores = np.array([1.0, np.nan, 4.0, np.nan, 2.0, 0.5])
    known = np.where(np.isnan(scores), 4.0, scores)
    chosen = ImportanceSampling(0.5).choose(owned_with(scores), 1, 3)
    expected = ImportanceSampling(0.5).choose(owned_with(known), 1, 3)
    assert as_list(chosen) == as_list(expected)
    nothing = ImportanceSampling(0.5).choose(owned_with(np.full(6, np.nan)), 0, 3)
    assert as_list(nothing) == [0.5] * 6


def test_a_loss_below_zero_counts_as_zero() -> None:
    method = ImportanceSampling(0.5, importance="loss")
    below, zero = (method.choose(owned_with([value, 0.0, 1.0, 2.0]), 1, 2) for value in (-5.0, 0.0))
    assert as_list(below) == as_list(zero)
