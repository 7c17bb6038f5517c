"""Samples of given scores, as a method sees them."""

import numpy as np
from numpy.typing import ArrayLike

from ted_stream.pruning import ExponentialMean, Owned, ScoreStore


def owned_with(scores: ArrayLike, *, epoch: int = 0, seed: int = 0) -> Owned:
    """One rank that owns samples of these running scores, NaN where never measured."""
    scores = np.asarray(scores, np.float32)
    store = ScoreStore(len(scores), ExponentialMean())
    store.columns["score"][:] = scores
    return Owned(store, epoch=epoch, seed=seed)
