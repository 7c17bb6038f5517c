"""CRAIG against a naive greedy, the exhaustive optimum and explicit clusters."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from last_layers import WithHead, kept, own_gradients, recorded_of
from numpy.typing import NDArray

from ted_stream.methods.static.craig import CRAIG
from ted_stream.methods.static.last_layer import LastLayer
from ted_stream.pruning.hashing import hash_ids

Array = NDArray[np.float64]


def distances_of(recorded: WithHead) -> Array:
    own = own_gradients(recorded)
    return np.array([[np.linalg.norm(one - other) for other in own] for one in own])


def value(distances: Array, chosen: list[int]) -> float:
    """Facility location: how much nearer the chosen are than the farthest that two samples are apart."""
    return sum(distances.max() - min(distances[row, pick] for pick in chosen) for row in range(len(distances)))


def naive_greedy(distances: Array, count: int, hashes: NDArray[np.uint64]) -> list[int]:
    """Of equal gains (two samples nearest to each other have them) the lowest hash."""
    chosen: list[int] = []
    while len(chosen) < count:
        values = {pick: value(distances, [*chosen, pick]) for pick in range(len(distances)) if pick not in chosen}
        best = [pick for pick, found in values.items() if found > max(values.values()) - 1e-6 * distances.max()]
        chosen.append(min(best, key=lambda pick: hashes[pick]))
    return chosen


def cluster_sizes(distances: Array, chosen: list[int]) -> list[int]:
    nearest = [min(chosen, key=lambda pick: distances[row, pick]) for row in range(len(distances))]
    return [nearest.count(pick) for pick in chosen]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bias", [True, False])
def test_one_class_is_the_naive_greedy(seed: int, bias: bool) -> None:
    recorded = recorded_of(20, seed=seed, bias=bias, labels=[1] * 20)
    distances = distances_of(recorded)
    for count in (1, 2, 7, 19):
        scored = CRAIG().score(recorded, keep=count, seed=seed)
        chosen = naive_greedy(distances, count, hash_ids(np.arange(20), seed=seed))
        assert kept(scored.scores, count) == chosen
        assert scored.weights is not None
        sizes = scored.weights[chosen] * 20 / count
        np.testing.assert_allclose(sizes, cluster_sizes(distances, chosen), rtol=1e-6)
        assert scored.weights[chosen].mean() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_the_value_is_near_the_optimum(seed: int) -> None:
    """Greedy has at least 1 - 1/e of the best value of all sets (Nemhauser, Wolsey and Fisher, 1978)."""
    recorded = recorded_of(11, seed=seed, labels=[2] * 11)
    distances = distances_of(recorded)
    for count in (1, 3, 5):
        found = value(distances, kept(CRAIG().score(recorded, keep=count, seed=0).scores, count))
        best = max(value(distances, list(chosen)) for chosen in combinations(range(11), count))
        assert (1 - 1 / np.e) * best <= found <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_classes_do_not_meet(seed: int) -> None:
    labels = [0] * 6 + [1] * 12 + [2] * 18
    recorded = recorded_of(36, seed=seed, labels=labels)
    scored = CRAIG().score(recorded, keep=12, seed=seed)
    chosen = kept(scored.scores, 12)
    assert np.bincount(np.array(labels)[chosen]).tolist() == [2, 4, 6]
    assert scored.weights is not None
    distances = distances_of(recorded)
    for label in range(3):
        members = np.flatnonzero(np.array(labels) == label)
        hashes = hash_ids(members, seed=seed)
        expected = naive_greedy(distances[np.ix_(members, members)], [2, 4, 6][label], hashes)
        assert [pick for pick in chosen if labels[pick] == label] == members[expected].tolist()
        sizes = cluster_sizes(distances[np.ix_(members, members)], expected)
        np.testing.assert_allclose(scored.weights[members[expected]] * 3, sizes, rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "keep", "expected"),
    [
        ((1, 3, 96), 10, [1, 1, 8]),  # a class of one sample keeps it
        ((1, 3, 96), 3, [1, 1, 1]),
        ((1, 3, 96), 2, [0, 0, 2]),  # fewer than classes: by size alone
        ((1, 3, 96), 99, [1, 3, 95]),
        ((1, 3, 96), 100, [1, 3, 96]),
        ((10, 10, 10), 15, [5, 5, 5]),
        ((1, 1, 1), 3, [1, 1, 1]),
        ((0, 5, 5), 2, [0, 1, 1]),  # a class without samples
    ],
)
def test_shares_of_classes(sizes: tuple[int, ...], keep: int, expected: list[int]) -> None:
    labels = np.repeat(np.arange(3), sizes)
    recorded = recorded_of(len(labels), labels=labels.tolist())
    scored = CRAIG().score(recorded, keep=keep, seed=0)
    chosen = kept(scored.scores, keep)
    assert np.count_nonzero(scored.scores) == keep
    assert np.bincount(labels[chosen], minlength=3).tolist() == expected
    assert scored.weights is not None
    assert scored.weights.dtype == np.float32
    assert (scored.weights > 0).all()
    assert scored.weights[chosen].mean() == pytest.approx(1)


def test_one_sample_of_three_equal_classes() -> None:
    """The odd one goes to a class that the seed draws."""
    recorded = recorded_of(30, labels=[0, 1, 2] * 10)
    assert recorded.labels is not None
    drawn = {int(recorded.labels[CRAIG().score(recorded, keep=1, seed=seed).scores.argmax()]) for seed in range(20)}
    assert drawn == {0, 1, 2}


def test_all_kept_weigh_one() -> None:
    weights = CRAIG().score(recorded_of(twice=True), keep=30, seed=0).weights
    assert weights is not None
    assert weights.tolist() == [1] * 30


def test_equal_samples_count_for_one_another() -> None:
    """Of pairs of equal samples one is kept each, with the weight of both."""
    recorded = recorded_of(16, labels=[0] * 16, twice=True)
    scored = CRAIG().score(recorded, keep=8, seed=0)
    chosen = kept(scored.scores, 8)
    assert sorted(pick // 2 for pick in chosen) == list(range(8))
    assert scored.weights is not None
    assert scored.weights[chosen].tolist() == [1] * 8
    scored = CRAIG().score(recorded, keep=9, seed=0)
    chosen = kept(scored.scores, 9)
    assert scored.weights is not None
    sizes = np.round(scored.weights[chosen] * 16 / 9).astype(int)
    assert sorted(sizes.tolist()) == [1, 1, 2, 2, 2, 2, 2, 2, 2], "each of an equal pair has a cluster of its own"


def test_a_large_class_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = recorded_of(50, labels=[0] * 41 + [1] * 9)
    seen: list[NDArray[np.int64]] = []
    original = LastLayer.distances

    def distances(layer: LastLayer, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append(rows)
        return original(layer, rows)

    monkeypatch.setattr(LastLayer, "distances", distances)
    scored = CRAIG(block=10).score(recorded, keep=20, seed=0)
    assert sorted(map(len, seen)) == [8, 8, 8, 8, 9, 9]
    assert sorted(np.concatenate(seen).tolist()) == list(range(50))
    assert np.count_nonzero(scored.scores) == 20
    first = [rows.tolist() for rows in seen]
    seen.clear()
    CRAIG(block=10).score(recorded, keep=20, seed=1)
    assert [rows.tolist() for rows in seen] != first
    for block in (41, 4096):
        np.testing.assert_array_equal(
            CRAIG(block=block).score(recorded, keep=20, seed=0).scores, CRAIG().score(recorded, keep=20, seed=0).scores
        )


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", True, None])
def test_a_wrong_block_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^block is .* must"):
        CRAIG(block=value)
