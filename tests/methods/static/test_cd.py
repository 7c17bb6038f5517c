"""CD against a naive k-centre loop with explicit KL divergences."""

import math

import numpy as np
import pytest
import torch
from last_layers import kept, recorded_of
from numpy.typing import NDArray

from ted_stream.methods.static.cd import CD
from ted_stream.methods.static.static_method import Recorded
from ted_stream.pruning.hashing import hash_ids


def kl(p: list[float], q: list[float]) -> float:
    return sum(p_c * math.log(p_c / q_c) for p_c, q_c in zip(p, q, strict=True))


def naive(recorded: Recorded, keep: int, seed: int) -> list[int]:
    p = np.exp(recorded.columns["log_probabilities"].astype(np.float64)).tolist()
    chosen = [int(hash_ids(np.arange(len(p)), seed=seed).argmin())]
    while len(chosen) < keep:
        rest = [row for row in range(len(p)) if row not in chosen]
        chosen.append(max(rest, key=lambda row: min(kl(p[row], p[one]) + kl(p[one], p[row]) for one in chosen)))
    return chosen


def of_logits(logits: list[list[float]]) -> Recorded:
    return Recorded(columns={"log_probabilities": torch.tensor(logits).log_softmax(1).clamp(min=-87.3).numpy()})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_is_the_naive_loop(seed: int, classes: int) -> None:
    recorded = recorded_of(24, classes=classes, seed=seed)
    for keep in (1, 2, 9, 23, 24):
        assert kept(CD().score(recorded, keep=keep, seed=seed).scores, keep) == naive(recorded, keep, seed)


def test_a_smaller_set_is_the_beginning_of_a_larger() -> None:
    recorded = recorded_of(40)
    assert kept(CD().score(recorded, keep=30, seed=0).scores, 12) == kept(
        CD().score(recorded, keep=12, seed=0).scores, 12
    )


def test_the_covering_radius_is_at_most_that_of_other_sets() -> None:
    """The chosen cover the predictions better than any of many random sets of as many."""
    recorded = recorded_of(60, classes=4, seed=2)
    p = np.exp(recorded.columns["log_probabilities"].astype(np.float64)).tolist()
    distances = np.array([[kl(one, other) + kl(other, one) for other in p] for one in p])

    def radius(chosen: NDArray[np.int64]) -> float:
        return float(distances[:, chosen].min(1).max())

    found = radius(np.array(kept(CD().score(recorded, keep=8, seed=0).scores, 8)))
    rng = np.random.default_rng(0)
    assert found < min(radius(rng.choice(60, 8, replace=False)) for _ in range(200))


def test_equal_predictions_come_last() -> None:
    recorded = recorded_of(20, twice=True)
    chosen = kept(CD().score(recorded, keep=20, seed=0).scores, 20)
    assert sorted(pick // 2 for pick in chosen[:10]) == list(range(10))
    hashes = hash_ids(np.arange(20), seed=0)
    assert (np.diff(hashes[chosen[10:]].astype(object)) > 0).all(), "among equals the hash decides"


def test_predictions_without_doubt() -> None:
    """Probabilities that underflow are far from each other, not infinitely far, and not NaN."""
    recorded = of_logits([[200.0, 0, 0], [200.0, 0, 0], [0, 200.0, 0], [0, 0, 200.0], [0, 0, 0]])
    scores = CD().score(recorded, keep=4, seed=0).scores
    assert np.isfinite(scores).all()
    chosen = set(kept(scores, 4))
    assert {2, 3, 4} <= chosen
    assert len(chosen & {0, 1}) == 1
