"""The samples that a rank owns, as a method sees them when it chooses."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.hashing import gumbel, uniform
from ted_stream.pruning.score_store import ScoreStore, group_means
from ted_stream.pruning.selection import Selection, make_keys, quantiles_of, top_k_mask

__all__ = ["Owned"]


class Owned:
    """This rank's share of the samples, n of N, with collective operations over the shares of all ranks.

    What they give is the same for every number of ranks, to the bit; every rank calls the same ones in the same order.

    Args:
        store: the scores.
        epoch: that is chosen for (0-based).
        seed: of ties and draws.
        given: by name, (n,) float32, what the method's ``given()`` names, NaN where nothing is known.

    Attributes:
        num_samples: N.
        first_id: this rank's first sample id; its samples are first_id … first_id + n - 1.
        scores: (n,) float32 running scores, NaN for a sample that was never measured.
        columns: by name, (n,) float32, what the method's ``running()`` remembers.
        given: see above.
        epoch: see above.
        seed: see above.
        communicator: the ranks.
    """

    def __init__(
        self, store: ScoreStore, *, epoch: int, seed: int, given: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        self.num_samples = store.num_samples
        self.first_id = store.first_id
        self.scores = store.scores
        self.columns = store.columns
        self.given = given or {}
        self.epoch = epoch
        self.seed = seed
        self._labels = store.labels
        self._class_sizes: NDArray[np.int64] | None = None
        self.communicator = store.communicator

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(n,) the sample ids."""
        return np.arange(self.first_id, self.first_id + len(self), dtype=np.int64)

    # Draws ---------------------------------------------------------------------------------------------------------

    def uniform(self, *, later: int = 0) -> NDArray[np.float64]:
        """(n,) variates of (seed, epoch, id), uniform in (0, 1); or those of an epoch so many later."""
        return uniform(self.ids, seed=self.seed, epoch=self.epoch + later)

    def gumbel(self) -> NDArray[np.float64]:
        """(n,) standard Gumbel variates of (seed, epoch, id)."""
        return gumbel(self.ids, seed=self.seed, epoch=self.epoch)

    # Choices -------------------------------------------------------------------------------------------------------

    def top_k(
        self, keys: NDArray[np.floating], k: int, *, within: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """(n,) marks of the k highest keys, as float32, of all ranks; ties by a hash of the id (see `top_k_mask`).

        Args:
            keys: (n,); those of samples that are not ``within`` do not count.
            k: from 0 to the number of samples ``within``.
            within: (n,) marks of the samples to choose among; all where it is ``None``.
        """
        single = self._checked(keys)
        if within is None:
            return top_k_mask(single, k, first_id=self.first_id, seed=self.seed, communicator=self.communicator)
        marks = np.zeros(len(self), np.bool_)
        self._mark(marks, single, np.flatnonzero(within), k)
        return marks

    def top_k_by_class(self, keys: NDArray[np.floating], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) marks of the highest keys of every class; a few exchanges for each.

        Args:
            keys: (n,), as float32.
            counts: (C + 1,), how many of every class, and of the samples whose class is not known yet, as in
                :attr:`class_sizes`.
        """
        single = self._checked(keys)
        marks = np.zeros(len(self), np.bool_)
        groups = self.groups
        order = np.argsort(groups, kind="stable")
        bounds = np.searchsorted(groups[order], np.arange(len(counts) + 1))
        for count, first, end in zip(counts.tolist(), bounds[:-1], bounds[1:], strict=True):
            if count:  # on every rank alike
                self._mark(marks, single, order[first:end], count)
        return marks

    def _checked(self, keys: NDArray[np.floating]) -> NDArray[np.float32]:
        if keys.shape != (len(self),):
            raise ValueError(f"keys have shape {keys.shape}; give one for each of this rank's {len(self)} samples.")
        return keys.astype(np.float32, copy=False)

    def _mark(self, marks: NDArray[np.bool_], keys: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> None:
        ids, communicator = self.first_id + rows, self.communicator
        marks[rows] = top_k_mask(keys[rows], k, ids=ids, seed=self.seed, communicator=communicator)

    def select(
        self,
        selection: Selection,
        k: int,
        *,
        scores: NDArray[np.float32] | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> NDArray[np.bool_]:
        """(n,) marks of the k samples of all ranks that a selection ranks highest.

        Args:
            selection: makes the ranking keys.
            k: how many to mark over all ranks.
            scores: (n,) float32 to rank by; the running scores where it is ``None``.
            counts: how many of every class, as in :meth:`top_k_by_class`; without them classes do not matter.
        """
        scores = self.scores if scores is None else scores
        keys = make_keys(lambda part, ids: selection.keys(part, ids, self.epoch), scores, first_id=self.first_id)
        return self.top_k(keys, k) if counts is None else self.top_k_by_class(keys, counts)

    # Classes -------------------------------------------------------------------------------------------------------

    @property
    def labels(self) -> NDArray[np.int32]:
        """(n,) the classes, -1 where none was seen yet; only of a method with ``needs_labels``."""
        if self._labels is None:
            raise ValueError("No classes are remembered; set needs_labels = True on the class of the method.")
        return self._labels

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """(C + 1,) samples of every class over all ranks, and last those whose class is not known yet.

        C is one more than the largest class that was seen. Collective when it is first asked for.
        """
        if self._class_sizes is None:
            mine = np.array([self.labels.max(initial=-1)], np.int64)
            classes = 1 + int(np.max(self.communicator.all_gather(mine)))
            groups = np.where(self.labels < 0, classes, self.labels)
            self._class_sizes = self.counts_of(np.ones(len(self), np.bool_), groups, classes + 1)
        return self._class_sizes

    @property
    def groups(self) -> NDArray[np.int64]:
        """(n,) the classes, C where none is known: rows of :attr:`class_sizes`."""
        return np.where(self.labels < 0, len(self.class_sizes) - 1, self.labels)

    # Figures of all ranks ------------------------------------------------------------------------------------------

    def count(self, marks: NDArray[np.bool_]) -> int:
        """How many samples of all ranks are marked."""
        return int(self.communicator.all_reduce_sum(np.array([np.count_nonzero(marks)], np.int64))[0])

    def counts_of(self, marks: NDArray[np.bool_], groups: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """(size,) how many samples of each group are marked over all ranks.

        Args:
            marks: (n,) of this rank.
            groups: (n,) the group of each, from 0 to size - 1.
            size: how many groups there are.
        """
        return self.communicator.all_reduce_sum(np.bincount(groups[marks], minlength=size).astype(np.int64))

    def mean(self, values: NDArray[np.floating]) -> float:
        """The mean of the finite values of all ranks, 0 if there are none."""
        return float(self.means_of(values, np.zeros(len(values), np.int64), 1)[0])

    def means_of(self, values: NDArray[np.floating], groups: NDArray[np.int64], size: int) -> NDArray[np.float64]:
        """(size,) the mean of the finite values of each group over all ranks, 0 of a group without any.

        Args:
            values: (m,) of this rank.
            groups: (m,) the group of each, from 0 to size - 1.
            size: how many groups there are.
        """
        finite = np.isfinite(values)
        means, _ = group_means(values[finite].astype(np.float64), groups[finite], self.communicator)
        return np.pad(means, (0, size - len(means)))

    def largest(self, values: NDArray[np.floating]) -> float:
        """The largest of the values of all ranks that are not NaN, -inf if there are none."""
        mine = np.array([np.max(values, initial=-np.inf, where=~np.isnan(values))], np.float64)
        return float(np.max(self.communicator.all_gather(mine)))

    def quantiles(self, values: NDArray[np.floating], shares: Sequence[float]) -> list[float]:
        """Exact quantiles of the values of all ranks (see `quantiles_of`)."""
        return quantiles_of(values, shares, self.communicator)
