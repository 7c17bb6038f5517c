"""TED and RandomPruning against sorting."""

import numpy as np
import pytest
from owners import owned_with

from ted_stream.methods import TED, RandomPruning
from ted_stream.pruning.hashing import gumbel, hash_ids, uniform

N, K = 200, 80
IDS = np.arange(N)
SCORES = np.random.default_rng(2).lognormal(size=N).astype(np.float32)
SCORES[:7] = np.nan
SCORES[100:140] = SCORES[100]


def highest(keys: np.ndarray, k: int, seed: int) -> list[int]:
    """The k highest, ties by the hash of the id."""
    hashes = [int(value) for value in hash_ids(IDS, seed=seed)]
    return sorted(sorted(IDS.tolist(), key=lambda at: (float(keys[at]), hashes[at]))[-k:])


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("k", [1, 5, 60, K, N])
def test_ted_keeps_the_highest_scores(k: int, seed: int) -> None:
    chosen = TED(0.5).choose(owned_with(SCORES, epoch=3, seed=seed), 3, k)
    assert np.flatnonzero(chosen.keep).tolist() == highest(np.nan_to_num(SCORES, nan=np.inf), k, seed)
    assert chosen.inclusion is None


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [None, 0.5, 4.0])
def test_ted_draws_by_gumbel_keys(temperature: float | None, floor: float) -> None:
    method = TED(0.5, choice="sampled", temperature=temperature, floor=floor)
    chosen = method.choose(owned_with(SCORES, epoch=3, seed=7), 3, K)
    raised = SCORES.astype(float) + floor * np.nanmean(SCORES.astype(float))
    keys = np.log(raised) / (temperature or 1.0) + gumbel(IDS, seed=7, epoch=3)
    assert np.flatnonzero(chosen.keep).tolist() == highest(np.nan_to_num(keys, nan=np.inf), K, 7)


@pytest.mark.long
def test_a_floor_lets_small_scores_be_drawn_as_it_says() -> None:
    """Two halves of scores 0 and 1, and a floor of 1: drawn as 0.5 and 1.5, one to three."""
    scores = np.repeat([0.0, 1.0], 100)

    def share(floor: float) -> float:
        method = TED(0.5, choice="sampled", floor=floor)
        kept = [method.choose(owned_with(scores, epoch=epoch), epoch, 1).keep[:100].sum() for epoch in range(2000)]
        return float(np.mean(kept))

    assert share(0.0) == 0
    assert share(1.0) == pytest.approx(0.25, abs=4.5 * np.sqrt(0.25 * 0.75 / 2000))


def test_scores_of_zero_are_drawn_anew_in_every_epoch() -> None:
    """Where more are to be kept than have a score above zero, the rest is another one every time."""
    scores = np.zeros(N)
    scores[:20] = 1.0
    sets, counts, epochs = set(), np.zeros(N), 200
    for epoch in range(epochs):
        keep = TED(0.5, choice="sampled").choose(owned_with(scores, epoch=epoch), epoch, K).keep
        assert keep[:20].all()
        sets.add(keep.tobytes())
        counts += keep
    assert len(sets) == epochs
    share = (K - 20) / (N - 20)
    deviations = np.abs(counts[20:] / epochs - share) / np.sqrt(share * (1 - share) / epochs)
    assert deviations.max() < 4.5, "each of them as often as any other"


@pytest.mark.parametrize("epoch", [0, 4])
def test_random_keeps_the_highest_variates(epoch: int) -> None:
    chosen = RandomPruning(0.5).choose(owned_with(SCORES, epoch=epoch, seed=9), epoch, K)
    draws = uniform(IDS, seed=9, epoch=epoch).astype(np.float32)
    assert np.flatnonzero(chosen.keep).tolist() == highest(draws, K, 9)


def test_the_loss_is_divided_by_the_keep_ratio() -> None:
    owned = owned_with(SCORES)
    for method in (TED(0.5), RandomPruning(0.5, loss_correction=True)):
        assert method.weigh(owned, method.choose(owned, 0, K), 0.4) == 1 / 0.4
    for method in (TED(0.5, loss_correction=False), RandomPruning(0.5)):
        assert method.weigh(owned, method.choose(owned, 0, K), 0.4) == 1
