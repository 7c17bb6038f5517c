"""AUM: the area under the margin, which tells mislabelled samples from those that are merely hard."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.static.trajectory import TrajectoryScore
from ted_stream.pruning import Running
from ted_stream.pruning.measures import LogitMargin
from ted_stream.pruning.running import Columns
from ted_stream.pruning.settings import check_choice

__all__ = ["AUM", "EpochMean"]


@dataclass(frozen=True, kw_only=True)
class EpochMean(Running):
    """The mean of all measurements of a sample, each epoch's counted once.

    Args:
        sign: 1 or −1, by which the mean is multiplied.
    """

    sign: int = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The mean, and of how many epochs."""
        return ("mean", "count")

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """One more measurement: mean ← mean + (value − mean) / count."""
        del epoch
        count = np.nan_to_num(columns["count"][rows]) + 1
        mean = np.nan_to_num(columns["mean"][rows]).astype(np.float64)
        columns["mean"][rows] = mean + (values - mean) / count
        columns["count"][rows] = count

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """± the mean."""
        return columns["mean"] if self.sign == 1 else -columns["mean"]


@dataclass(frozen=True, kw_only=True)
class AUM(TrajectoryScore):
    """The mean over epochs of z_y − max_{c≠y} z_c; the largest are kept (Pleiss et al. 2020).

    A mislabelled sample's margin is low throughout: the samples like it pull against its label.

    Args:
        keep: ``easiest`` keeps the largest means, as the paper does: the lowest are likely mislabelled. ``hardest``
            turns the score round, for coverage-centric selection, which drops the hardest first (Zheng et al. 2023).

    Raises:
        ValueError: for another word, at construction.
    """

    keep: str = "easiest"

    def __post_init__(self) -> None:
        check_choice("keep", self.keep, ("easiest", "hardest"))

    def measure(self) -> LogitMargin:
        """z_y − max_{c≠y} z_c; over tokens, the mean over the sample's own."""
        return LogitMargin()

    def running(self) -> EpochMean:
        """The mean over epochs."""
        return EpochMean(sign=1 if self.keep == "easiest" else -1)
