"""UCB: train on the highest running losses, raised by how much they vary."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.choices import choose_by
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned, Running
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.running import Columns
from ted_stream.pruning.settings import check_number

__all__ = ["UCB", "ConfidenceBound"]


@dataclass(frozen=True, kw_only=True)
class ConfidenceBound(Running):
    """e + c·v, with e ← α·e + (1 - α)·I and v ← α·v + (1 - α)·(I - e)², in which e is the old one.

    The first measurement sets e = I and v = 0.

    Args:
        c: 0 or more, the weight of v.
        alpha: α in [0, 1), the weight of the past in both.
    """

    c: float = 1.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        fix = "it weighs the variance against the mean; 0 ranks by the mean alone."
        object.__setattr__(self, "c", check_number("c", self.c, "[0, inf)", fix=fix))
        object.__setattr__(self, "alpha", ExponentialMean(alpha=self.alpha).alpha)

    @property
    def columns(self) -> tuple[str, ...]:
        """The mean e and the variance v."""
        return ("mean", "variance")

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """Both, of float64 values."""
        del epoch
        mean, variance = (columns[name][rows].astype(np.float64) for name in self.columns)
        first, change = np.isnan(mean), values - mean
        columns["mean"][rows] = np.where(first, values, mean + (1 - self.alpha) * change)
        columns["variance"][rows] = np.where(first, 0.0, self.alpha * variance + (1 - self.alpha) * change**2)

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """The bound, e + c·v."""
        return columns["mean"] + np.float32(self.c) * columns["variance"]


@dataclass(frozen=True, kw_only=True)
class UCB(ScheduledMethod):
    """Keep the K highest e + c·v, e the running loss and v its running variance (Raju et al., 2021).

    A sample whose loss varies may be worth more than its mean says. Samples that were never measured rank first. With
    ``schedule='constant'`` and no annealing it is the rule of the paper, whose α is the weight of the new loss, 1 - α
    here.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        c: 0 or more, the weight of the variance.
        alpha: α in [0, 1), the weight of the past in both (see :class:`ConfidenceBound`).

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    c: float = 1.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        running = self.running()
        self._put("c", running.c)
        self._put("alpha", running.alpha)

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> ConfidenceBound:
        """The bound of the loss."""
        return ConfidenceBound(c=self.c, alpha=self.alpha)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """The highest bounds."""
        del epoch
        assert k is not None
        return choose_by(owned, k, "highest")
