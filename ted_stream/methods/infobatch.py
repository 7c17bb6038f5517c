"""InfoBatch: leave out some of the well-learnt samples, and weigh up those that stay in their place."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import OwnCountMethod
from ted_stream.pruning import ExponentialMean, Owned
from ted_stream.pruning.measures import Loss, Measure

__all__ = ["InfoBatch"]

_START = 3.0  # the score of a sample before its first measurement


@dataclass(frozen=True)
class InfoBatch(OwnCountMethod):
    """Prune samples of a loss below the mean at random; divide the loss of their survivors by 1 - r (Qin et al., 2024).

    A sample's score is its latest loss. Of the M samples below the mean score, ⌊(1 - r)·M⌋ stay, drawn anew in every
    epoch, so that the expected gradient is that of all data. How many that leaves follows from the losses: the saving
    is not known in advance, and at most r. The last epochs train on all data.

    Args:
        prune_ratio: r in [0, 1), the fraction of the well-learnt samples to leave out; the paper uses 0.5.
        annealing: share of the epochs at the end on all data; the paper's 1 - δ = 0.125.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    weighs_samples: ClassVar[bool] = True

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> ExponentialMean:
        """The latest measurement."""
        return ExponentialMean(alpha=0.0)

    def by_rule(self, owned: Owned, epoch: int) -> Chosen:
        """All above the mean, and a uniform sample of those below."""
        del epoch
        scores = np.where(np.isnan(owned.scores), np.float32(_START), owned.scores)
        below = scores < np.float32(owned.mean(scores))  # a float64 mean of equal scores may lie above them
        # Rounding first: (1 - 0.7) * 10 is 3.0000000000000004.
        stay = int(round((1 - self.prune_ratio) * owned.count(below), 6))
        drawn = owned.top_k(np.where(below, owned.uniform(), -1), stay)
        inclusion = np.where(below, np.float32(1 - self.prune_ratio), np.float32(1))
        return Chosen(drawn | ~below, inclusion)

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> float | NDArray[np.float32]:
        """1 / (1 - r) for the survivors, 1 for the others."""
        del owned, ratio
        return 1.0 if chosen.inclusion is None else 1 / chosen.inclusion[chosen.keep]
