"""Forgetting: the samples that are learnt and unlearnt again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.static.trajectory import TrajectoryScore
from ted_stream.pruning import Running
from ted_stream.pruning.measures import Correct
from ted_stream.pruning.running import Columns

__all__ = ["Forgetting", "ForgettingEvents"]


@dataclass(frozen=True, kw_only=True)
class ForgettingEvents(Running):
    """How often a sample was right in one measurement and wrong in the next."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Whether it was right the last time, its transitions, and the epochs until its last measurement."""
        return ("correct", "forgotten", "epochs")

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """Count a transition where it was right and is wrong; measured several times, the majority says which."""
        correct = values > 0.5
        lost = (columns["correct"][rows] == 1) & ~correct
        columns["forgotten"][rows] = np.nan_to_num(columns["forgotten"][rows]) + lost
        columns["correct"][rows] = correct
        columns["epochs"][rows] = epoch + 1

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """The transitions; of a sample that was never right the epochs so far, which are more than there can be."""
        never = (columns["correct"] == 0) & (columns["forgotten"] == 0)
        return np.where(never, columns["epochs"], columns["forgotten"])


@dataclass(frozen=True, kw_only=True)
class Forgetting(TrajectoryScore):
    """The number of transitions from right to wrong over the epochs; the largest are kept (Toneva et al. 2019).

    A sample that was never right counts as forgotten infinitely often in the paper. Here it scores as many as there
    were epochs: transitions take two each, so it ranks above all others, and scores stay numbers that can be binned.
    For language models a sample is right where more than half of its own tokens are.
    """

    def measure(self) -> Correct:
        """Right or wrong."""
        return Correct()

    def running(self) -> ForgettingEvents:
        """The transitions."""
        return ForgettingEvents()
