"""OrderDP: train on the highest losses of a random pool."""

from dataclasses import dataclass

import numpy as np

from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned, num_kept
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.settings import check_number

__all__ = ["OrderDP"]


@dataclass(frozen=True, kw_only=True)
class OrderDP(ScheduledMethod):
    """Draw a uniform pool in every epoch, and train on the highest latest losses in it (Jin et al., ICLR 2026).

    Every sample is as likely to be in the pool as any other, so an easy one is kept where the pool has few that are
    harder. The expected gradient is that of a surrogate loss, which weighs every sample by the probability that one of
    its rank is kept. It is the same surrogate in all epochs if as many are pooled and kept in each, so the schedule is
    constant, and nothing anneals, unless asked for. Samples that were never measured rank first.

    Args:
        prune_ratio: s in [0, 1), exactly this share is left out with the constant schedule. See
            :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        pool: the share of all samples that the pool holds, from 1 - s, a uniform sample, to 1, the highest losses of
            all; 1 - s / 2 by default, which leaves as much to chance as to the losses. Where the schedule keeps more
            than the pool holds, it holds what is kept.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    schedule: str = "constant"
    annealing: float = 0.0
    pool: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is None:
            return
        fix = "it is the share of all samples among which the highest losses are kept."
        self._put("pool", check_number("pool", self.pool, "(0, 1]", fix=fix))
        if round(self.pool, 6) < round(1 - self.prune_ratio, 6):
            raise ValueError(
                f"pool is {self.pool!r}, but prune_ratio={self.prune_ratio!r} keeps {1 - self.prune_ratio:.6g} of all "
                "samples, more than such a pool holds. Pass a larger pool, or prune more."
            )

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> ExponentialMean:
        """The latest measurement."""
        return ExponentialMean(alpha=0.0)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """A draw, then the highest in it."""
        del epoch
        assert k is not None
        share = 1 - self.prune_ratio / 2 if self.pool is None else self.pool
        pool = owned.top_k(owned.uniform(), max(k, num_kept(share, owned.num_samples)))
        return Chosen(owned.top_k(np.where(np.isnan(owned.scores), np.inf, owned.scores), k, within=pool))
