"""Samples of given scores, as a method sees them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ted_stream.engine.folding import fold_epoch
from ted_stream.methods import Chosen, Method
from ted_stream.pruning import ExponentialMean, Measurements, Owned, ScoreStore, num_kept

__all__ = ["History", "owned_with"]


def owned_with(scores: ArrayLike, *, epoch: int = 0, seed: int = 0, labels: ArrayLike | None = None) -> Owned:
    """One rank that owns samples of these running scores, NaN where never measured, and of these classes."""
    scores = np.asarray(scores, np.float32)
    store = ScoreStore(len(scores), ExponentialMean(), labelled=labels is not None)
    store.columns["score"][:] = scores
    if labels is not None:
        store.labels = np.asarray(labels, np.int32)
    return Owned(store, epoch=epoch, seed=seed)


class History:
    """A run of a method on one rank without a model: what is measured is given.

    Args:
        method: that chooses.
        num_samples: N.
        epochs: T.
        seed: of draws.
        labels: (N,) classes.
        given: what is known before the run.
    """

    def __init__(
        self,
        method: Method,
        num_samples: int,
        epochs: int,
        *,
        seed: int = 0,
        labels: NDArray[np.int64] | None = None,
        given: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self.method, self.epochs, self.seed, self.labels, self.given = method, epochs, seed, labels, given
        self.store = ScoreStore(num_samples, method.running(), labelled=method.needs_labels)

    def choose(self, epoch: int) -> tuple[Owned, Chosen, Any]:
        """What an epoch keeps, and the weights of it."""
        owned = Owned(self.store, epoch=epoch, seed=self.seed, given=self.given)
        ratio = self.method.keep_ratio(epoch, self.epochs)
        k = None if ratio is None else num_kept(ratio, self.store.num_samples)
        chosen = self.method.choose(owned, epoch, k)
        self.store.pending = dict(chosen.columns)
        kept = np.count_nonzero(chosen.keep) / len(owned)
        return owned, chosen, self.method.weigh(owned, chosen, kept if ratio is None or kept == 1 else ratio)

    def measure(self, epoch: int, chosen: Chosen, values: NDArray[np.float64]) -> None:
        """The epoch is over.

        Args:
            epoch: 0-based.
            chosen: for it.
            values: (N,), of which those of the kept were measured.
        """
        ids = np.flatnonzero(chosen.keep)
        labels = None if self.labels is None else self.labels[ids]
        found = Measurements(ids=ids, importance=values[ids], steps=np.arange(len(ids)) // 8, labels=labels)
        fold_epoch(self.method, self.store, found, epoch)
