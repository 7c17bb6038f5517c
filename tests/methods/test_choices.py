"""Ways to choose, against what they say: shares of classes, turns, draws of known probability."""

import numpy as np
import pytest
from owners import History, owned_with

from ted_stream.methods import Composed, RandomPruning
from ted_stream.methods.choices import choose_by, choose_evenly, choose_uniformly, choose_weighted, class_counts
from ted_stream.pruning.hashing import hash_ids, uniform
from ted_stream.pruning.sampling import proportional

RNG = np.random.default_rng(0)
LABELS = RNG.choice(5, size=400, p=[0.5, 0.3, 0.15, 0.04, 0.01])


def shares_by_hand(weights, k, limits):
    """One unit after the other to the class that is furthest behind its share of what is not yet full (naive)."""
    given = np.zeros(len(weights), int)
    full = given >= limits
    while True:  # what would exceed its limit is full
        left = k - given[full].sum()
        wanted = np.where(full, 0, weights)
        wanted = left * wanted / wanted.sum() if wanted.sum() else wanted
        beyond = ~full & (wanted >= limits)
        if not beyond.any():
            break
        given[beyond] = limits[beyond]
        full |= beyond
    given[~full] = np.floor(wanted[~full] + 1e-9)
    for _ in range(k - given.sum()):
        behind = np.where(full, -np.inf, wanted - given)
        given[int(np.argmax(behind))] += 1
    return given


@pytest.mark.parametrize("trial", range(40))
def test_shares_are_those_made_one_by_one(trial: int) -> None:
    rng = np.random.default_rng(trial)
    limits = rng.integers(0, 30, size=rng.integers(1, 9))
    limits[0] += 1
    weights = rng.lognormal(sigma=2, size=len(limits))
    k = int(rng.integers(0, limits.sum() + 1))
    found = proportional(weights, k, limits)
    assert found.sum() == k
    assert (found <= limits).all()
    assert found.tolist() == shares_by_hand(weights, k, limits).tolist()


def test_shares_of_nothing() -> None:
    assert proportional(np.zeros(3), 4, np.array([2, 1, 5])).sum() == 4, "all weights are zero"
    assert proportional(np.array([0.0, 1.0]), 5, np.array([10, 2])).tolist() == [3, 2], "what one cannot take"


@pytest.mark.parametrize("k", [1, 7, 100, 399, 400])
@pytest.mark.parametrize("shares", ["as_they_are", "sqrt", "equal", "by_loss"])
def test_class_counts(shares: str, k: int) -> None:
    losses = RNG.gamma(2.0, size=len(LABELS)) * (1 + LABELS)
    owned = owned_with(np.ones(len(LABELS)), labels=LABELS)
    sizes = np.bincount(LABELS, minlength=5)
    means = np.array([losses[c == LABELS].mean() for c in range(5)])
    weights = {
        "as_they_are": sizes,
        "sqrt": np.sqrt(sizes),
        "equal": np.ones(5),
        "by_loss": np.sqrt(means * sizes / len(LABELS)),
    }[shares]
    found = class_counts(owned, k, shares, losses)
    assert found[-1] == 0, "every class is known"
    assert found[:-1].tolist() == shares_by_hand(weights.astype(float), k, sizes).tolist()


@pytest.mark.parametrize("coverage", ["fresh", "even"])
@pytest.mark.parametrize("shares", ["as_they_are", "equal", "sqrt"])
def test_every_class_is_known_in_the_end(shares: str, coverage: str) -> None:
    """The last few whose class was not seen get one of the kept, though their part of them rounds to none."""
    labels = np.repeat([0, 1, 2], [40, 15, 5])
    method = RandomPruning(0.9, class_shares=shares, coverage=coverage, schedule="constant", annealing=0.0)
    run, seen = History(method, 60, 10**9, labels=labels), np.zeros(60, bool)
    for epoch in range(80):
        _, chosen, _ = run.choose(epoch)
        seen |= chosen.keep
        run.measure(epoch, chosen, np.zeros(60))
    assert seen.all()


def test_unknown_classes_get_their_part() -> None:
    labels = np.where(np.arange(400) % 2, LABELS, -1)
    counts = class_counts(owned_with(np.ones(400), labels=labels), 100, "equal")
    assert counts[-1] == 50
    assert counts.sum() == 100
    none = class_counts(owned_with(np.ones(10), labels=np.full(10, -1)), 4, "sqrt")
    assert none.tolist() == [4]


@pytest.mark.parametrize("choice", ["highest", "lowest"])
def test_the_highest_of_every_class(choice: str) -> None:
    scores = RNG.integers(0, 20, size=400).astype(np.float32)  # with ties
    owned = owned_with(scores, labels=LABELS, seed=3)
    counts = class_counts(owned, 90, "sqrt")
    keep = choose_by(owned, 90, choice, counts=counts).keep
    hashes = hash_ids(np.arange(400), seed=3)
    for c in range(5):
        rows = np.flatnonzero(c == LABELS)
        sign = 1 if choice == "highest" else -1
        best = sorted(rows, key=lambda row: (sign * scores[row], hashes[row]))[::-1][: counts[c]]
        assert sorted(best) == np.flatnonzero(keep & (c == LABELS)).tolist()


def test_those_never_measured_come_first() -> None:
    scores = np.arange(20, dtype=np.float32)
    scores[[3, 17]] = np.nan
    for choice in ("highest", "lowest", "sampled"):
        keep = choose_by(owned_with(scores), 4, choice).keep
        assert keep[[3, 17]].all(), choice


def test_within_marks() -> None:
    owned = owned_with(np.arange(50, dtype=np.float32))
    within = np.arange(50) % 3 == 0
    assert np.flatnonzero(owned.top_k(owned.scores, 4, within=within)).tolist() == [39, 42, 45, 48]
    assert not owned.top_k(owned.scores, 0, within=within).any()
    assert owned.top_k(owned.scores, 17, within=within).tolist() == within.tolist()
    with pytest.raises(ValueError, match="k is 18"):
        owned.top_k(owned.scores, 18, within=within)


def test_a_uniform_draw_of_classes_is_one_of_the_highest_variates() -> None:
    owned = owned_with(np.ones(400), labels=LABELS, epoch=2, seed=4)
    counts = class_counts(owned, 60, "equal")
    draws = uniform(np.arange(400), seed=4, epoch=2)
    keep = choose_uniformly(owned, 60, counts=counts).keep
    for c in range(5):
        rows = np.flatnonzero(c == LABELS)
        assert set(np.flatnonzero(keep & (c == LABELS))) == set(rows[np.argsort(-draws[rows])[: counts[c]]])


def test_probabilities_of_a_weighted_draw() -> None:
    """Over many epochs each sample is kept as often as its probability says, and classes as often as their counts."""
    scores = RNG.lognormal(sigma=1, size=40).astype(np.float32)
    labels = np.arange(40) % 2
    seen, inclusion = np.zeros(40), np.zeros(40)
    for epoch in range(600):
        owned = owned_with(scores, labels=labels, epoch=epoch)
        counts = np.array([6, 9, 0])
        chosen = choose_weighted(owned, 15, scores.astype(float), counts=counts)
        assert chosen.inclusion is not None
        assert [np.count_nonzero(chosen.keep & (labels == c)) for c in range(2)] == [6, 9]
        seen, inclusion = seen + chosen.keep, chosen.inclusion
    for c, count in ((0, 6), (1, 9)):
        assert inclusion[labels == c].sum() == pytest.approx(count, rel=1e-5)
    assert np.abs(seen / 600 - inclusion).max() < 0.08  # a standard deviation is 0.02, Pareto's bias 0.01


@pytest.mark.parametrize("schedule", ["constant", "roller-coaster"])
def test_even_coverage_visits_all_before_any_again(schedule: str) -> None:
    method = RandomPruning(0.7, coverage="even", schedule=schedule, annealing=0.0)
    run = History(method, 211, 24)
    visits = np.zeros(211, int)
    orders = []
    for epoch in range(24):
        _, chosen, _ = run.choose(epoch)
        visits += chosen.keep
        assert visits.max() - visits.min() <= 1, f"after epoch {epoch}"
        orders.append(chosen.keep)
        run.measure(epoch, chosen, np.zeros(211))
    if schedule == "constant":  # 64 of 211 an epoch; the first epochs of two passes
        first, later = orders[0], orders[10]
        assert 0 < np.count_nonzero(first & later) < 64, "another order in every pass"


def test_even_coverage_is_in_proportion() -> None:
    """Visits never differ from the sum of the probabilities by more than two visits."""
    sizes = RNG.lognormal(sigma=1, size=100)
    run = History(Composed(0.5, choice="even"), 100, 10**9)
    earned, visits = np.zeros(100), np.zeros(100)
    for epoch in range(200):
        owned, _, _ = run.choose(epoch)
        chosen = choose_evenly(owned, 30, sizes)
        assert chosen.inclusion is not None
        run.store.pending = dict(chosen.columns)
        run.store.settle()
        earned += chosen.inclusion
        visits += chosen.keep
        assert np.abs(earned - visits).max() < 2


def test_samples_of_like_probability_do_not_come_together() -> None:
    """Every epoch has its share of both kinds, from the first on."""
    sizes = np.repeat([1.0, 3.0], 500)
    run = History(Composed(0.5, choice="even"), 1000, 10**9)
    shares = []
    for epoch in range(60):
        owned, _, _ = run.choose(epoch)
        chosen = choose_evenly(owned, 300, sizes)
        run.store.pending = dict(chosen.columns)
        run.store.settle()
        shares.append(np.count_nonzero(chosen.keep[500:]) / 300)
    assert np.mean(shares) == pytest.approx(0.75, abs=0.01)
    assert np.abs(np.array(shares) - 0.75).max() < 0.1  # a fresh draw: 0.06 at two standard deviations


def test_an_epoch_that_is_begun_again_chooses_the_same() -> None:
    """Credit is paid when the epoch is over, not when it is chosen for."""
    run = History(RandomPruning(0.7, coverage="even", schedule="constant"), 50, 8)
    for epoch in range(3):
        _, first, _ = run.choose(epoch)
        _, again, _ = run.choose(epoch)
        assert np.array_equal(first.keep, again.keep)
        run.measure(epoch, again, np.zeros(50))
