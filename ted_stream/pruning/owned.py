"""The samples that a rank owns, as a method sees them when it chooses."""

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.hashing import uniform
from ted_stream.pruning.running import ScoreStore, group_means
from ted_stream.pruning.selection import Selection, select, top_k_mask

__all__ = ["Owned"]


class Owned:
    """This rank's share of the samples, n of N, with collective operations over the shares of all ranks.

    What they give is the same for every number of ranks, to the bit; every rank calls the same ones in the same order.

    Args:
        store: the scores.
        epoch: that is chosen for (0-based).
        seed: of ties and draws.

    Attributes:
        num_samples: N.
        first_id: this rank's first sample id; its samples are first_id … first_id + n - 1.
        scores: (n,) float32 running scores, NaN for a sample that was never measured.
        columns: by name, (n,) float32, what the method's ``running()`` remembers.
        epoch: see above.
        seed: see above.
    """

    def __init__(self, store: ScoreStore, *, epoch: int, seed: int) -> None:
        self.num_samples = store.num_samples
        self.first_id = store.first_id
        self.scores = store.scores
        self.columns = store.columns
        self.epoch = epoch
        self.seed = seed
        self._communicator = store.communicator

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(n,) the sample ids."""
        return np.arange(self.first_id, self.first_id + len(self), dtype=np.int64)

    def uniform(self) -> NDArray[np.float64]:
        """(n,) variates of (seed, epoch, id), uniform in (0, 1)."""
        return uniform(self.ids, seed=self.seed, epoch=self.epoch)

    def top_k(self, keys: NDArray[np.floating], k: int) -> NDArray[np.bool_]:
        """(n,) marks of the k highest keys, as float32, of all ranks; ties by a hash of the id (see `top_k_mask`)."""
        if keys.shape != (len(self),):
            raise ValueError(f"keys have shape {keys.shape}; give one for each of this rank's {len(self)} samples.")
        single = keys.astype(np.float32, copy=False)
        return top_k_mask(single, k, first_id=self.first_id, seed=self.seed, communicator=self._communicator)

    def select(self, selection: Selection, k: int, *, scores: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
        """(n,) marks of the k samples of all ranks that a selection ranks highest.

        Args:
            selection: makes the ranking keys.
            k: how many to mark over all ranks.
            scores: (n,) float32 to rank by; the running scores where it is ``None``.
        """
        return select(
            selection,
            self.scores if scores is None else scores,
            k,
            first_id=self.first_id,
            epoch=self.epoch,
            seed=self.seed,
            communicator=self._communicator,
        )

    def count(self, marks: NDArray[np.bool_]) -> int:
        """How many samples of all ranks are marked."""
        return int(self._communicator.all_reduce_sum(np.array([np.count_nonzero(marks)], np.int64))[0])

    def mean(self, values: NDArray[np.floating]) -> float:
        """The mean of the finite values of all ranks, 0 if there are none."""
        finite = values[np.isfinite(values)].astype(np.float64)
        means, _ = group_means(finite, np.zeros(len(finite), np.int64), self._communicator)
        return float(means[0]) if len(means) else 0.0

    def largest(self, values: NDArray[np.floating]) -> float:
        """The largest of the values of all ranks that are not NaN, -inf if there are none."""
        mine = np.array([np.max(values, initial=-np.inf, where=~np.isnan(values))], np.float64)
        return float(np.max(self._communicator.all_gather(mine)))
