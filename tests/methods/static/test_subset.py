"""Subsets of scores against the rules written down one sample, class and stratum at a time."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ted_stream.methods.static.subset import BALANCES, choose_subset, class_quotas
from ted_stream.pruning import SingleProcess, top_k_mask
from ted_stream.pruning.hashing import hash_ids

N = 200
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=N).astype(np.float32)
LABELS = RNG.choice(4, size=N, p=[0.6, 0.25, 0.1, 0.05])


def key(sample: int, seed: int, epoch: int = 0) -> int:
    return int(hash_ids(np.array([sample]), seed=seed, epoch=epoch)[0])


def naive_quotas(sizes: list[int], caps: list[int], keep: int, power: Fraction) -> list[int]:
    """Exact shares, one class closed after the other; then the largest remainders."""
    weights = [Fraction(math.isqrt(10**12 * size), 10**6) if power else Fraction(1) for size in sizes]
    if power == 1:
        weights = [Fraction(size) for size in sizes]
    weights = [weight if size else Fraction(0) for weight, size in zip(weights, sizes, strict=True)]
    is_open = [bool(size) for size in sizes]
    shares = [Fraction(0)] * len(sizes)
    while True:
        closed = sum(cap for cap, is_o in zip(caps, is_open, strict=True) if not is_o)
        total = sum(w for w, is_o in zip(weights, is_open, strict=True) if is_o)
        for c, is_o in enumerate(is_open):
            shares[c] = (keep - closed) * weights[c] / total if is_o else Fraction(caps[c])
        over = [c for c, is_o in enumerate(is_open) if is_o and shares[c] > caps[c]]
        if not over:
            break
        for c in over:
            is_open[c] = False
        if not any(is_open):
            return caps
    quotas = [math.floor(share) for share in shares]
    order = sorted(range(len(sizes)), key=lambda c: (-round(float(shares[c] - quotas[c]), 6), c))
    for c in order[: keep - sum(quotas)]:
        quotas[c] += 1
    return quotas


def naive_ccs(scores: NDArray[np.float32], pool: list[int], budget: int, strata: int, seed: int) -> set[int]:
    """Algorithm 1 of CCS."""
    low = min(float(scores[k]) for k in pool)
    width = (max(float(scores[k]) for k in pool) - low) / strata
    bins: dict[int, list[int]] = {}
    for k in pool:
        at = 0
        while at < strata - 1 and float(scores[k]) >= low + (at + 1) * width:
            at += 1
        bins.setdefault(at, []).append(k)
    chosen: set[int] = set()
    left = sorted(bins)
    while left:
        smallest = min(left, key=lambda at: len(bins[at]))
        count = min(len(bins[smallest]), (budget - len(chosen)) // len(left))
        chosen |= set(sorted(bins[smallest], key=lambda k: key(k, seed, 1))[:count])
        left.remove(smallest)
    return chosen


def naive(
    scores: NDArray[np.float32],
    keep: int,
    labels: NDArray[np.int64],
    balance: str,
    strata: int,
    cutoff: float,
    seed: int,
) -> list[int]:
    classes = [list(range(len(scores)))]
    if balance != "none":
        classes = [[k for k in range(len(scores)) if labels[k] == c] for c in sorted(set(labels.tolist()))]
    pools = []
    for members in classes:
        ranked = sorted(members, key=lambda k: (float(scores[k]), key(k, seed)), reverse=True)
        pools.append(ranked[int(Fraction(str(cutoff)) * len(ranked)) :])
    power = {"none": Fraction(1), "as_they_are": Fraction(1), "sqrt": Fraction(1, 2), "equal": Fraction(0)}[balance]
    quotas = naive_quotas([len(c) for c in classes], [len(p) for p in pools], keep, power)
    kept: set[int] = set()
    for pool, quota in zip(pools, quotas, strict=True):
        kept |= naive_ccs(scores, pool, quota, strata, seed) if strata else set(pool[:quota])
    return sorted(kept)


@pytest.mark.parametrize("cutoff", [0.0, 0.29, 0.1])
@pytest.mark.parametrize("strata", [0, 1, 7, 50])
@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize(
    "keep", [pytest.param(1, marks=pytest.mark.long), 33, pytest.param(100, marks=pytest.mark.long), 142]
)
def test_is_the_rule(keep: int, balance: str, strata: int, cutoff: float) -> None:
    for seed in (0, 7):
        marks = choose_subset(SCORES, keep, labels=LABELS, balance=balance, strata=strata, cutoff=cutoff, seed=seed)
        assert marks.dtype == np.bool_
        assert np.count_nonzero(marks) == keep
        assert np.flatnonzero(marks).tolist() == naive(SCORES, keep, LABELS, balance, strata, cutoff, seed)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_are_broken_by_the_hash(levels: int) -> None:
    scores = RNG.integers(levels, size=N).astype(np.float32)
    for balance, strata, cutoff in (("none", 0, 0.0), ("none", 3, 0.2), ("equal", 0, 0.2), ("sqrt", 3, 0.2)):
        marks = choose_subset(scores, 60, labels=LABELS, balance=balance, strata=strata, cutoff=cutoff, seed=3)
        assert np.flatnonzero(marks).tolist() == naive(scores, 60, LABELS, balance, strata, cutoff, 3)
    expected = top_k_mask(scores, 60, first_id=0, seed=3, communicator=SingleProcess())
    np.testing.assert_array_equal(choose_subset(scores, 60, seed=3), expected)
    other = choose_subset(scores, 60, seed=4)
    assert (other != expected).any()


@pytest.mark.parametrize("balance", BALANCES)
def test_all_may_be_kept(balance: str) -> None:
    for strata in (0, 4):
        assert choose_subset(SCORES, N, labels=LABELS, balance=balance, strata=strata).all()


def test_numbers_of_classes_may_have_gaps() -> None:
    for balance in ("as_they_are", "sqrt", "equal"):
        plain = choose_subset(SCORES, 50, labels=LABELS, balance=balance)
        np.testing.assert_array_equal(choose_subset(SCORES, 50, labels=LABELS * 1000 + 5, balance=balance), plain)


def test_quotas() -> None:
    def quotas(sizes: list[int], keep: int, balance: str, caps: list[int] | None = None) -> list[int]:
        found = class_quotas(np.array(sizes), np.array(caps or sizes), keep, balance=balance)
        return found.tolist()

    assert quotas([60, 30, 10], 50, "as_they_are") == [30, 15, 5]
    assert quotas([60, 30, 10], 50, "equal") == [20, 20, 10]  # 50/3 is above 10, and the rest is shared again
    assert quotas([64, 16, 4, 0], 28, "sqrt") == [16, 8, 4, 0]
    assert quotas([60, 30, 10], 50, "as_they_are", caps=[10, 30, 10]) == [10, 30, 10]
    assert quotas([10, 10], 20, "equal") == [10, 10]
    assert sorted(quotas([10, 10, 10], 10, "equal")) == [3, 3, 4]
    rng = np.random.default_rng(1)
    for _ in range(200):
        sizes = rng.integers(0, 40, size=6)
        caps = sizes - rng.integers(0, 3, size=6).clip(max=sizes)
        if not caps.sum():
            continue
        keep = int(rng.integers(1, caps.sum() + 1))
        for balance in ("as_they_are", "sqrt", "equal"):
            found = class_quotas(sizes, caps, keep, balance=balance)
            assert found.sum() == keep
            assert (found <= caps).all()
            assert (found >= 0).all()


def test_strata_cover_the_range() -> None:
    """One sample far off keeps its stratum to itself; the others share equally."""
    scores = np.concatenate([np.zeros(50), np.full(30, 0.55), [1.0]]).astype(np.float32)
    marks = choose_subset(scores, 21, strata=10)
    assert [np.count_nonzero(marks[part]) for part in (slice(0, 50), slice(50, 80), slice(80, 81))] == [10, 10, 1]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"keep": 0}, r"keep is 0, but must lie in \[1, 200\]"),
    ({"keep": 201}, "keep is 201"),
    ({"keep": 150, "cutoff": 0.3}, r"keep is 150, but cutoff=0\.3 leaves 140 of 200 samples"),
    ({"cutoff": 1.0}, r"cutoff is 1\.0"),
    ({"cutoff": -0.1}, r"cutoff is -0\.1"),
    ({"strata": -1}, "strata is -1"),
    ({"balance": "class"}, "balance is 'class'"),
    ({"balance": "equal", "labels": None}, "balance='equal' shares by class, but there are no labels"),
    ({"balance": "equal", "labels": LABELS[:-1]}, r"labels have shape \(199,\)"),
    ({"balance": "sqrt", "labels": LABELS.astype(float)}, "dtype float64"),
    ({"balance": "sqrt", "labels": LABELS - 1}, "the lowest -1"),
    ({"scores": np.append(SCORES[:-2], [np.nan, np.inf])}, "2 of 200 scores are infinite or NaN"),
    ({"scores": SCORES[:, None]}, r"scores have shape \(200, 1\)"),
    ({"scores": SCORES[:0]}, r"scores have shape \(0,\)"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose_subset(**{"scores": SCORES, "keep": 50, "labels": LABELS, **change})


@pytest.mark.parametrize("name", ["keep", "strata", "cutoff", "seed"])
def test_values_of_another_type_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is '3'"):
        choose_subset(**{"scores": SCORES, "keep": 50, name: "3"})
