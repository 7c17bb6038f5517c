"""Methods that look at classes, losses of a reference, or running deviations, against the formulas written again."""

import math

import numpy as np
import pytest
from owners import History

from ted_stream.export.scores import write_scores
from ted_stream.methods import RCAP, Composed, DynamicDUAL, FixedSubset, Learnability, RandomPruning
from ted_stream.pruning import num_kept
from ted_stream.pruning.hashing import gumbel, uniform
from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout, write_skip_list

N, T = 300, 8
RNG = np.random.default_rng(2)
LABELS = RNG.choice(4, size=N, p=[0.6, 0.25, 0.1, 0.05])
VALUES = [RNG.gamma(2.0, 0.8**epoch, size=N) * (1 + LABELS) for epoch in range(T)]


def capped_shares(weights, k, sizes):
    """Real shares of k, none above its size, the rest shared again; the largest remainders are rounded up."""
    shares, full = np.zeros(len(weights)), np.zeros(len(weights), bool)
    while not full.all():
        shares[~full] = (k - sizes[full].sum()) * weights[~full] / weights[~full].sum()
        beyond = ~full & (shares >= sizes)
        if not beyond.any():
            break
        full |= beyond
        shares[full] = sizes[full]
    counts = np.floor(shares + 1e-9).astype(int)
    for c in np.argsort(counts - shares, kind="stable")[: k - counts.sum()]:
        counts[c] += 1
    return counts


def test_rcap() -> None:
    method = RCAP(0.7, temperature=0.5)
    run = History(method, N, T, seed=5, labels=LABELS)
    losses = np.full(N, np.nan)
    for epoch in range(T):
        _, chosen, weights = run.choose(epoch)
        assert weights == 1
        if epoch:
            clipped = np.minimum(losses, math.log(4)).astype(np.float32)
            sizes = np.bincount(LABELS)
            means = np.array([clipped[c == LABELS].astype(float).mean() for c in range(4)])
            k = num_kept(method.keep_ratio(epoch, T), N)
            counts = capped_shares(np.sqrt(means * sizes / N), k, sizes)
            keys = (clipped / 0.5 + gumbel(np.arange(N), seed=5, epoch=epoch)).astype(np.float32)
            expected = []
            for c in range(4):
                rows = np.flatnonzero(c == LABELS)
                expected += rows[np.argsort(-keys[rows])[: counts[c]]].tolist()
            assert sorted(expected) == np.flatnonzero(chosen.keep).tolist(), f"epoch {epoch}"
        else:
            assert chosen.keep.all()
        losses[chosen.keep] = VALUES[epoch][chosen.keep]
        run.measure(epoch, chosen, VALUES[epoch])


def test_dynamic_dual() -> None:
    """With both Polyak means as they are written down, and the variance as their difference."""
    method = DynamicDUAL(0.6, choice="highest", annealing=0.0)
    run = History(method, N, T, seed=1)
    mean, square, times = np.full(N, np.nan), np.full(N, np.nan), np.zeros(N, int)
    probabilities = RNG.beta(2, 2, size=(T, N))
    for epoch in range(T):
        _, chosen, _ = run.choose(epoch)
        if epoch > 1:
            scores = np.sqrt(np.maximum(square - mean**2, 0)) * (1 - mean)
            scores[times == 1] = 0
            np.testing.assert_allclose(run.store.scores, scores, rtol=1e-5, atol=1e-4)
            scores[times == 1] = scores[times > 1].mean()
            k = num_kept(method.keep_ratio(epoch, T), N)
            lowest_kept, highest_left = scores[chosen.keep].min(), scores[~chosen.keep].max()
            assert np.count_nonzero(chosen.keep) == k
            assert lowest_kept >= highest_left - 1e-6
        p, kept = probabilities[epoch], chosen.keep
        first = np.isnan(mean)
        times += kept
        mean[kept] = np.where(first, p, 0.7 * mean + 0.3 * p)[kept]
        square[kept] = np.where(first, p * p, 0.7 * square + 0.3 * p * p)[kept]
        run.measure(epoch, chosen, p)


@pytest.mark.parametrize(
    "method",
    [
        DynamicDUAL(0.7),
        DynamicDUAL(0.5, schedule="constant", annealing=0.0),
        Composed(0.7, score="deviation"),
        Composed(0.7, importance="true_probability", score="uncertainty"),
    ],
    ids=repr,
)
def test_those_measured_once_are_not_left_behind(method) -> None:
    """Their deviation is not known, and not zero: without a floor too, nearly all samples are seen in the end."""
    run, seen = History(method, 1000, 26), np.zeros(1000, np.int64)
    for epoch in range(22):
        _, chosen, _ = run.choose(epoch)
        seen += chosen.keep & (epoch > 2)
        run.measure(epoch, chosen, np.random.default_rng(epoch).random(1000))
    assert np.count_nonzero(seen) > 850  # a draw by known scores, TED(0.7, choice="sampled"), comes to 951


def test_dynamic_dual_draws_uniformly_at_first() -> None:
    """After one measurement of all no deviation is known: what is kept is a draw that does not hang on the values."""
    drawn = []
    for values in (np.linspace(0, 1, N), np.linspace(1, 0, N)):
        run = History(DynamicDUAL(0.5), N, T, seed=1)
        _, chosen, _ = run.choose(0)
        assert chosen.keep.all()
        run.measure(0, chosen, values)
        drawn.append(run.choose(1)[1].keep)
    assert np.array_equal(*drawn)


LAYOUT = DatasetLayout(streams=(StreamLayout(shards=(ShardLayout(name="a", size=1, samples=N),)),))


@pytest.mark.parametrize("choice", ["highest", "sampled"])
def test_learnability(choice: str, tmp_path) -> None:
    reference = RNG.gamma(1.0, size=N).astype(np.float32)
    reference[11] = np.nan
    write_scores(tmp_path / "r.parquet", LAYOUT, reference, provenance={"method": "reference"})
    method = Learnability(0.6, reference=str(tmp_path / "r.parquet"), alpha=0.5, choice=choice, temperature=0.25)
    with pytest.warns(UserWarning, match=r"1 of 300 samples have no reference loss in .*r\.parquet: they rank last"):
        given = method.given(LAYOUT)
    run = History(method, N, T, seed=3, given=given)
    running = np.full(N, np.nan)
    for epoch in range(T):
        _, chosen, _ = run.choose(epoch)
        if epoch:
            keys = running.astype(np.float32) - reference
            if choice == "sampled":
                keys = keys / 0.25 + gumbel(np.arange(N), seed=3, epoch=epoch)
            keys = np.where(np.isnan(keys), -np.inf, keys).astype(np.float32)
            k = num_kept(method.keep_ratio(epoch, T), N)
            expected = set(np.argsort(-keys, kind="stable")[:k])
            assert set(np.flatnonzero(chosen.keep)) == expected
            assert not chosen.keep[11] or k == N, "a sample without a reference loss ranks last"
        kept = chosen.keep
        old = np.isnan(running)
        running[kept] = np.where(old, VALUES[epoch], 0.5 * running + 0.5 * VALUES[epoch])[kept]
        run.measure(epoch, chosen, VALUES[epoch])


def test_scores_that_are_no_reference_losses_are_refused(tmp_path) -> None:
    write_scores(tmp_path / "e.parquet", LAYOUT, np.ones(N, np.float32), provenance={"method": "EL2N()"})
    with pytest.raises(ValueError, match=r"holds scores of 'EL2N\(\)', not reference losses"):
        Learnability(0.5, reference=str(tmp_path / "e.parquet")).given(LAYOUT)


def test_learnability_of_a_holdout() -> None:
    """Those that the reference was trained on are trained on once, and then only where nothing else is left."""
    reference = np.where(np.arange(N) < N // 2, np.nan, RNG.random(N)).astype(np.float32)
    method = Learnability(0.4, reference="none.parquet", annealing=0.0)
    run = History(method, N, T, given={"reference": reference})
    for epoch in range(T):
        _, chosen, _ = run.choose(epoch)
        if epoch:
            assert chosen.keep[N // 2 :].all()
            assert 0 < np.count_nonzero(chosen.keep[: N // 2]) < N // 2
        run.measure(epoch, chosen, VALUES[epoch])


def test_random_with_equal_classes() -> None:
    method = RandomPruning(0.8, class_shares="equal", schedule="constant", annealing=0.0)
    run = History(method, N, T, seed=9, labels=LABELS)
    known = np.zeros(N, bool)
    for epoch in range(T):
        _, chosen, _ = run.choose(epoch)
        k = num_kept(0.2, N)
        groups = np.where(known, LABELS, 4)
        sizes = np.bincount(groups, minlength=5)
        unknown = (
            capped_shares(np.array([known.sum(), (~known).sum()]) + 0.0, k, np.array([known.sum(), (~known).sum()]))[1]
            if known.any()
            else k
        )
        counts = np.append(
            capped_shares(np.ones(4) * (sizes[:4] > 0), k - unknown, sizes[:4]) if known.any() else [0] * 4, unknown
        )
        draws = uniform(np.arange(N), seed=9, epoch=epoch).astype(np.float32)
        expected = [
            row for c in range(5) for row in np.flatnonzero(groups == c)[np.argsort(-draws[groups == c])[: counts[c]]]
        ]
        assert sorted(expected) == np.flatnonzero(chosen.keep).tolist(), f"epoch {epoch}"
        known |= chosen.keep
        run.measure(epoch, chosen, np.zeros(N))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_fixed_subset(weighted: bool, tmp_path) -> None:
    mask = RNG.random(N) < 0.4
    weights = RNG.gamma(2.0, size=np.count_nonzero(mask)).astype(np.float32) if weighted else None
    made = SkipList.from_keep_bits(
        LAYOUT, np.packbits(mask), epoch=0, keep_ratio=0.4, method="CRAIG", run="r", weights=weights
    )
    write_skip_list(made, tmp_path / "list.parquet")
    method = FixedSubset(str(tmp_path / "list.parquet"))
    run = History(method, N, T, given=method.given(LAYOUT))
    for epoch in (0, 5):
        _, chosen, found = run.choose(epoch)
        assert np.array_equal(chosen.keep, mask)
        np.testing.assert_allclose(found, weights / weights.mean() if weights is not None else 1, rtol=1e-6)
    other = DatasetLayout(streams=(StreamLayout(shards=(ShardLayout(name="b", size=1, samples=N),)),))
    with pytest.raises(ValueError, match="the skip-list is for dataset"):
        method.given(other)


# What makes no sense


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"site": "output"}, "site is 'output', but importance has no mask"),
        ({"norm": 1}, "norm is 1, but importance has no mask"),
        ({"score": "uncertainty"}, "score is 'uncertainty', but importance is no probability"),
        ({"score": "deviation", "relative": True}, "relative is True, but score is no mean"),
        ({"importance": "entropy", "clip_chance": True}, "clip_chance is True, but score is no loss"),
        ({"importance": "logit_margin"}, "choice is 'sampled', but scores lie below zero too"),
        ({"choice": "even", "temperature": 2.0}, "temperature is 2.0, but nothing is drawn by it"),
        ({"weights": "inverse_probability", "temperature": 2.0}, "temperature is 2.0, but nothing is drawn by it"),
        ({"choice": "highest", "floor": 0.5}, "floor is 0.5, but nothing is drawn"),
        ({"importance": "margin", "choice": "lowest", "class_shares": "by_loss"}, "class_shares is 'by_loss', but"),
        ({"choice": "lowest", "weights": "inverse_probability"}, "weights is 'inverse_probability', but choice keeps"),
        ({"weights": "inverse_probability"}, "weights is 'inverse_probability', but floor is 0"),
        ({"score": "deviation", "alpha": 0.0}, "alpha is 0.0, but without a past there is no deviation"),
        ({"clip_chance": True, "relative": True}, "clip_chance is True, but score is no loss"),
        ({"class_shares": "by_loss", "score": "deviation"}, "class_shares is 'by_loss', but score is no loss"),
        ({"importance": "gradient"}, "importance is 'gradient', but it must be one of"),
        ({"clip_quantile": 1.0}, r"clip_quantile is 1.0, but it must lie in \(0, 1\)"),
    ],
)
def test_words_that_make_no_sense_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Composed(0.5, **settings)


def test_clipping() -> None:
    """At ln C, or at a quantile of all: what lies above is alike, and drawn alike."""
    method = Composed(0.5, clip_chance=True, choice="even", alpha=0.0)
    run = History(method, N, T, labels=LABELS)
    _, chosen, _ = run.choose(0)
    run.measure(0, chosen, VALUES[0])
    _, chosen, _ = run.choose(1)
    assert chosen.inclusion is not None
    above = VALUES[0] > math.log(4)
    assert len(set(chosen.inclusion[above])) == 1
    assert 0 < np.count_nonzero(above) < N
    by_quantile = History(Composed(0.9, clip_quantile=0.8, choice="even", alpha=0.0), N, T)
    _, chosen, _ = by_quantile.choose(0)
    by_quantile.measure(0, chosen, VALUES[0])
    _, chosen, _ = by_quantile.choose(1)
    assert chosen.inclusion is not None
    assert np.count_nonzero(chosen.inclusion == chosen.inclusion.max()) == N - 240 + 1
