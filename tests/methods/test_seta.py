"""SeTa against its rule, written down again in numpy, and its groups against scikit-learn's k-means."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from owners import owned_with
from sklearn.cluster import KMeans

from ted_stream.methods.seta import SeTa, group_by_value
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.pruning.hashing import uniform

SEED = 5
EXAMPLES = (
    SeTa(0.3),
    SeTa(0.1, groups=5, window_share=0.9, annealing=0.0),
    SeTa(0.0, groups=3, window_share=0.2),
    SeTa(0.6, groups=1, window_share=1.0),
)


# Its groups


_RNG = np.random.default_rng(3)
VALUES: dict[str, NDArray[Any]] = {
    "uniform": _RNG.random(500),
    "normal": _RNG.normal(size=301),
    "losses": _RNG.lognormal(-2, 1.5, size=2000),
    "clusters": np.concatenate([_RNG.normal(place, 0.1, size=50) for place in (0, 1, 5, 5.5, 9)]),
    "as many as groups": _RNG.permutation(10) ** 2.0,
}


def quantiles(values: NDArray[Any], num_groups: int) -> NDArray[np.float64]:
    """The ⌈q·m⌉-th smallest for q = (j + 1/2) / g."""
    ranks = np.ceil(np.round((np.arange(num_groups) + 0.5) / num_groups * len(values), 6)).astype(int)
    return np.sort(values)[ranks - 1].astype(np.float64)


def lloyd(values: NDArray[Any], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Assign to the nearest centre, the lower of two; move centres to the means; until nothing changes."""
    groups = np.full(len(values), -1)
    while True:
        nearest = np.argmin(np.abs(values[:, None].astype(np.float64) - centres), axis=1)
        if np.array_equal(nearest, groups):
            return groups
        groups = nearest
        centres = np.array(
            [values[groups == j].mean(dtype=np.float64) if (groups == j).any() else c for j, c in enumerate(centres)]
        )


@pytest.mark.parametrize("num_groups", [1, 2, 5, 10])
@pytest.mark.parametrize("name", VALUES)
def test_groups_are_those_of_scikit_learn(name: str, num_groups: int) -> None:
    values = VALUES[name].astype(np.float32)
    groups, found = group_by_value(owned_with(values), values, num_groups)
    start: Any = quantiles(values, num_groups)[:, None]
    once: Any = 1
    other = KMeans(num_groups, init=start, n_init=once, max_iter=1000, tol=0).fit(values[:, None].astype(np.float64))
    assert found == num_groups
    assert groups.tolist() == np.argsort(np.argsort(other.cluster_centers_[:, 0]))[other.labels_].tolist()
    assert groups.tolist() == lloyd(values, start[:, 0]).tolist()


def test_groups_are_numbered_from_the_lowest_and_nan_is_in_none() -> None:
    values = np.array([5.0, np.nan, 0.1, 5.1, np.nan, 0.0, 9.0], np.float32)
    groups, found = group_by_value(owned_with(values), values, 3)
    assert (groups.tolist(), found) == ([1, -1, 0, 1, -1, 0, 2], 3)


def test_a_group_for_each_of_few_different_values() -> None:
    values = np.array([2.0, 0.0, 2.0, 7.0, 0.0, 0.0], np.float32)
    groups, found = group_by_value(owned_with(values), values, 10)
    assert (groups.tolist(), found) == ([1, 0, 1, 2, 0, 0], 3)
    for value in (0.0, 0.1, 1e-30, 3e38, -4.0):
        groups, found = group_by_value(owned_with(np.full(97, value)), np.full(97, value, np.float32), 4)
        assert (set(groups.tolist()), found) == ({0}, 1)
    assert group_by_value(owned_with([np.nan]), np.array([np.nan], np.float32), 4)[1] == 0


def test_quantiles_that_coincide_leave_as_many_groups() -> None:
    values = np.where(np.arange(1000) < 700, 0, _RNG.lognormal(size=1000)).astype(np.float32)
    groups, found = group_by_value(owned_with(values), values, 10)
    assert found == 10
    means = [values[groups == group].mean() for group in range(10)]
    assert means == sorted(means)
    assert (groups == np.argmin(np.abs(values[:, None] - means), axis=1)).all(), "each is nearest to its own mean"


def test_a_group_that_empties_counts_as_none() -> None:
    values = np.array([1, 1, 3, 3, 4, 5, 5, 20, 22, 35, 37], np.float32)
    groups, found = group_by_value(owned_with(values), values, 3)
    of_lloyd = lloyd(values, quantiles(values, 3))
    assert len(set(of_lloyd.tolist())) == 2, "the example empties a group"
    assert (groups.tolist(), found) == (np.unique(of_lloyd, return_inverse=True)[1].tolist(), 2)


# Its choices


@pytest.mark.parametrize("num_samples", [1, 2, 10, 431])
@pytest.mark.parametrize("method", EXAMPLES, ids=repr)
def test_is_the_rule(method: SeTa, num_samples: int) -> None:
    num_epochs = 16
    losses = np.random.default_rng(num_samples).lognormal(size=(num_epochs, num_samples)).astype(np.float32)
    store = ScoreStore(num_samples, method.running())
    last = np.full(num_samples, np.nan)
    for epoch in range(num_epochs):
        ratio = method.keep_ratio(epoch, num_epochs)
        if epoch >= num_epochs - round(method.annealing * num_epochs):
            assert ratio == 1
            expected = list(range(num_samples))
        else:
            assert ratio is None
            draws = uniform(np.arange(num_samples), seed=SEED, epoch=epoch)
            drawn = np.argsort(-draws)[: int(np.ceil(round((1 - method.prune_ratio) * num_samples, 6)))]
            known = drawn[~np.isnan(last[drawn])]
            expected = drawn[np.isnan(last[drawn])].tolist()
            if len(known):
                g = min(method.groups, len(known))
                groups = lloyd(last[known], quantiles(last[known], g))
                assert len(set(groups.tolist())) == g
                w = max(1, round(method.window_share * g))
                i = epoch % (g - w + 1)
                expected += known[(groups >= i) & (groups < i + w)].tolist()
        owned = Owned(store, epoch=epoch, seed=SEED)
        chosen = method.choose(owned, epoch, None if ratio is None else num_kept(ratio, num_samples))
        kept = np.flatnonzero(chosen.keep)
        assert kept.tolist() == sorted(expected)
        assert method.weigh(owned, chosen, len(kept) / num_samples) == 1.0
        last[kept] = losses[epoch, kept]
        store.update(Measurements(ids=kept, importance=last[kept], steps=np.zeros(len(kept), int)), epoch=epoch)


def test_the_window_slides_and_begins_again() -> None:
    scores = np.repeat(np.arange(5.0), 2)
    method = SeTa(0.0, groups=5, window_share=0.4)
    kept = [sorted(set(scores[method.choose(owned_with(scores, epoch=t), t, None).keep])) for t in range(6)]
    assert kept == [[0, 1], [1, 2], [2, 3], [3, 4], [0, 1], [1, 2]]


def test_equal_losses_are_one_group() -> None:
    for epoch in range(5):
        assert np.count_nonzero(SeTa(0.25).choose(owned_with(np.full(40, 0.1), epoch=epoch), epoch, None).keep) == 30


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"groups": 0}, "groups"),
        ({"groups": -2}, "groups"),
        ({"window_share": 0.0}, "window_share"),
        ({"window_share": 1.5}, "window_share"),
        ({"window_share": 0.05}, "window_share"),  # round(0.05 · 10) = 0
        ({"annealing": 1.0}, "annealing"),
    ],
)
def test_refuses(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is"):
        SeTa(0.3, **settings)


@pytest.mark.parametrize("groups", [2.0, "3", True, None])
def test_groups_are_a_whole_number(groups: Any) -> None:
    with pytest.raises(TypeError, match=r"^groups is"):
        SeTa(0.3, groups=groups)
