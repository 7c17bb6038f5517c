"""What a method sees of the samples that a rank owns."""

import math

import numpy as np
import pytest

from ted_stream.pruning import Owned, ScoreStore
from ted_stream.testing import ThreadCommunicator, run_ranks

VALUES = np.random.default_rng(0).lognormal(sigma=4, size=101)
VALUES[[3, 50]] = np.nan
VALUES[77] = np.inf


def on_ranks(world_size: int) -> list[tuple[list[int], list[bool], int, float, float, float]]:
    def work(communicator: ThreadCommunicator):
        owned = Owned(ScoreStore(len(VALUES), communicator=communicator), epoch=4, seed=2)
        mine = VALUES[owned.ids]
        marks = owned.top_k(np.where(np.isnan(mine), -1, mine), 20)
        return (
            owned.ids.tolist(),
            marks.tolist(),
            owned.count(mine > 1),
            owned.mean(mine),
            owned.largest(mine),
            owned.mean(np.full(len(owned), np.nan)),
        )

    return run_ranks(world_size, work)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_is_the_same_on_any_number_of_ranks(world_size: int) -> None:
    found = on_ranks(world_size)
    assert [sample for ids, *_ in found for sample in ids] == list(range(len(VALUES)))
    marked = [mark for _, marks, *_ in found for mark in marks]
    assert np.flatnonzero(marked).tolist() == sorted(np.argsort(np.where(np.isnan(VALUES), -1, VALUES))[-20:].tolist())
    (count, mean, largest, nothing), *others = [rest for _, _, *rest in found]
    assert all(other == [count, mean, largest, nothing] for other in others)
    assert [mean] == [rank[3] for rank in on_ranks(1)], "to the bit"
    finite = VALUES[np.isfinite(VALUES)]
    assert count == np.count_nonzero(VALUES > 1)
    assert mean == pytest.approx(math.fsum(finite) / len(finite), rel=1e-12)
    assert (largest, nothing) == (math.inf, 0)


def test_keys_of_other_precision_are_ranked_as_float32() -> None:
    owned = Owned(ScoreStore(5), epoch=0, seed=0)
    for dtype in (np.float16, np.float32, np.float64):
        assert owned.top_k(np.array([1, 5, 2, 4, 3], dtype), 2).tolist() == [False, True, False, True, False]


def test_keys_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\).*5 samples"):
        Owned(ScoreStore(5), epoch=0, seed=0).top_k(np.zeros(4, np.float32), 2)


def test_the_largest_of_nothing() -> None:
    assert Owned(ScoreStore(3), epoch=0, seed=0).largest(np.full(3, np.nan)) == -math.inf
