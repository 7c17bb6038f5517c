"""What a method remembers of every sample."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.settings import check_flag, check_number

__all__ = ["Columns", "Deviation", "ExponentialMean", "Running", "RunningMean", "Uncertainty", "measured_once"]

Columns = Mapping[str, NDArray[np.float32]]


@dataclass
class RunningMean:
    """A bias-corrected exponential moving average of the mean importance per training step.

    Args:
        decay: weight of the past, per step.
        total: decayed sum of the means.
        weight: decayed sum of ones.
    """

    decay: float = 0.9
    total: float = 0.0
    weight: float = 0.0

    def update(self, mean: float) -> float:
        """Take in one step's mean and return the average including it."""
        self.total = self.decay * self.total + (1 - self.decay) * mean
        self.weight = self.decay * self.weight + (1 - self.decay)
        return self.total / self.weight


class Running(ABC):
    """What a method remembers of every sample: named columns, float32, NaN before the first measurement.

    Attributes:
        columns: their names.
        relative: divide every measurement by the running mean of all measurements as of its training step, so that
            measurements of different epochs can be compared although the scale of gradients drifts.
        window: subtract from every measurement the mean of all measurements in its window of so many training steps
            (the last of an epoch may be shorter), so that only what one state of the model gave is compared.
    """

    relative: bool = False
    window: int | None = None

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """See the class."""

    @abstractmethod
    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """Take the measurements of one epoch into the columns, in place; called once an epoch.

        Args:
            columns: (n,) each, of the samples that this rank owns.
            rows: (m,) rows of the columns, all different.
            values: (m,) what was measured of them; the mean, where a sample was measured several times.
            epoch: 0-based.
        """

    @abstractmethod
    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """(n,) the scores that the columns make; NaN for a sample that was never measured."""


@dataclass(frozen=True, kw_only=True)
class ExponentialMean(Running):
    """score ← α·score + (1 - α)·I, and the first measurement of a sample sets score = I (TED, eq. 19).

    A start at zero would rank samples by how often they were seen: pruned ones could never come back.

    Args:
        alpha: α in [0, 1), the weight of the past; 0 keeps the latest measurement.
        relative: see :class:`Running`.
    """

    alpha: float = 0.9
    relative: bool = False

    def __post_init__(self) -> None:
        fix = "it is the weight of the past in the running score, and 1 would ignore every measurement after the first."
        object.__setattr__(self, "alpha", check_number("alpha", self.alpha, "[0, 1)", fix=f"{fix} The paper uses 0.9."))
        check_flag("relative", self.relative, fix="it divides measurements by the mean importance of their time.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The score itself."""
        return ("score",)

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """Equation 19."""
        del epoch
        old = columns["score"][rows]
        new = np.where(np.isnan(old), values, self.alpha * old.astype(np.float64) + (1 - self.alpha) * values)
        columns["score"][rows] = new.astype(np.float32)

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """The column."""
        return columns["score"]


def measured_once(columns: Columns) -> NDArray[np.bool_]:
    """(n,) marks of the samples whose deviation cannot be told yet, by the columns of :class:`Deviation`."""
    return np.isnan(columns["variance"]) & ~np.isnan(columns["mean"])


@dataclass(frozen=True, kw_only=True)
class Deviation(Running):
    """The standard deviation of a sample's measurements about their running mean.

    mean ← α·mean + (1 - α)·I and likewise of I², started by the first measurement. The score is 0 until there is a
    second one: before, nothing is known of a deviation, and the column ``variance`` is NaN. The variance is updated
    itself, not made of both means (Finch, 2009, "Incremental calculation of weighted mean and variance"): a difference
    of rounded squares could be below zero.

    Args:
        alpha: α in (0, 1), the weight of the past; without any there is no deviation.
    """

    alpha: float = 0.9

    def __post_init__(self) -> None:
        fix = "it is the weight of the past, without which there is no deviation, and 1 would ignore all but the first."
        object.__setattr__(self, "alpha", check_number("alpha", self.alpha, "(0, 1)", fix=fix))

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the measurements."""
        return ("mean", "variance")

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """Both, of float64 values."""
        del epoch
        mean, variance = (columns[name][rows].astype(np.float64) for name in self.columns)
        first, change = np.isnan(mean), (1 - self.alpha) * (values - mean)
        columns["mean"][rows] = np.where(first, values, mean + change)
        variance = self.alpha * (np.nan_to_num(variance) + change * (values - mean))
        columns["variance"][rows] = np.where(first, np.nan, variance)

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """std(I)."""
        return np.where(measured_once(columns), np.float32(0), np.sqrt(columns["variance"]))


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Deviation):
    """std(p)·(1 - mean(p)) of a probability p (DUAL: Cho et al., 2025), with running means.

    Args:
        alpha: α in (0, 1), the weight of the past.
    """

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """std(p)·(1 - mean(p))."""
        return super().scores(columns) * (1 - columns["mean"])
