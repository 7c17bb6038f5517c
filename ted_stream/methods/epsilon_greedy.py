"""Epsilon-greedy: train on the highest running losses, and on a few of the others."""

from dataclasses import dataclass

import numpy as np

from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.settings import check_number

__all__ = ["EpsilonGreedy"]


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(ScheduledMethod):
    """Keep the (1 - ε)K highest running losses, and εK drawn uniformly from the rest (Raju et al., 2021).

    The running loss is e ← α·e + (1 - α)·ℓ, started by the first loss; samples that were never measured rank first. εK
    is rounded to a whole number. With ``schedule='constant'`` and no annealing it is the rule of the paper, whose α is
    the weight of the new loss, 1 - α here.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        epsilon: ε in [0, 1], the share of the kept samples that is drawn from the rest; 1 is a uniform sample.
        alpha: α in [0, 1), the weight of the past in the running loss.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    epsilon: float = 0.1
    alpha: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "it is the share of the kept samples that is drawn uniformly from the rest."
        self._put("epsilon", check_number("epsilon", self.epsilon, "[0, 1]", fix=fix))
        self._put("alpha", self.running().alpha)

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> ExponentialMean:
        """The running loss."""
        return ExponentialMean(alpha=self.alpha)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """The highest first, then a draw from the rest."""
        del epoch
        assert k is not None
        num_drawn = round(self.epsilon * k)
        highest = owned.top_k(np.where(np.isnan(owned.scores), np.inf, owned.scores), k - num_drawn)
        return Chosen(highest | owned.top_k(owned.uniform(), num_drawn, within=~highest))
