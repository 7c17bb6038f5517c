"""DUAL: the samples that are difficult and uncertain, told early in training."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.static.trajectory import TrajectoryScore
from ted_stream.pruning import Running
from ted_stream.pruning.measures import TrueProbability
from ted_stream.pruning.running import Columns
from ted_stream.pruning.settings import check_whole

__all__ = ["DUAL", "DifficultyAndUncertainty"]


@dataclass(frozen=True, kw_only=True)
class DifficultyAndUncertainty(Running):
    """The mean over sliding windows of J measurements of std · (1 − mean).

    The standard deviation divides by J − 1, as in the paper. A measured sample scores 0 until its first window is full.

    Args:
        epochs: T: measurements of later epochs do not count.
        length: J.
    """

    epochs: int
    length: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The latest J measurements, the oldest first; the number of windows; the mean over them."""
        return (*(f"value{at}" for at in range(self.length)), "windows", "score")

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """Move the window on by one measurement."""
        if epoch >= self.epochs:
            return
        names = self.columns[: self.length]
        for older, newer in pairwise(names):
            columns[older][rows] = columns[newer][rows]
        columns[names[-1]][rows] = values
        full = rows[~np.isnan(columns[names[0]][rows])]
        held = np.stack([columns[name][full] for name in names]).astype(np.float64)
        of_window = held.std(0, ddof=1) * (1 - held.mean(0))
        windows = np.nan_to_num(columns["windows"][full]) + 1
        mean = np.nan_to_num(columns["score"][full]).astype(np.float64)
        columns["windows"][full] = windows
        columns["score"][full] = mean + (of_window - mean) / windows

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """The mean over windows; 0 where none is full yet."""
        return np.where(np.isnan(columns["score"]), 0 * columns[f"value{self.length - 1}"], columns["score"])


@dataclass(frozen=True, kw_only=True)
class DUAL(TrajectoryScore):
    """The mean over windows of J epochs of std(p) · (1 − mean(p)); the largest are kept (Cho, Shin and Yun 2025).

    p is the probability of the sample's class. Only the first T epochs count, so that training may stop there.

    Args:
        epochs: T, at least J.
        window: J, at least 2.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    epochs: int = 30
    window: int = 10

    def __post_init__(self) -> None:
        for name in ("epochs", "window"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), fix="it is a number of epochs."))
        if not 2 <= self.window <= self.epochs:
            raise ValueError(
                f"window is {self.window} of epochs={self.epochs}, but must lie in [2, epochs]: a window must hold "
                "two epochs to vary, and fit into those that count. Take a smaller window, or more epochs."
            )

    def measure(self) -> TrueProbability:
        """p_y; over tokens, the mean over the sample's own."""
        return TrueProbability()

    def running(self) -> DifficultyAndUncertainty:
        """The windows."""
        return DifficultyAndUncertainty(epochs=self.epochs, length=self.window)

    def lacks_score(self, columns: Columns) -> NDArray[np.bool_]:
        """Those of whom no window is full."""
        return np.isnan(columns["score"])
