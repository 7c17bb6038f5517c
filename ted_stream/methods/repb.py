"""RePB: compare losses within windows of training steps, and weigh samples by how rarely they were trained on."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import OwnCountMethod
from ted_stream.pruning import Owned, Running
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.running import Columns
from ted_stream.pruning.settings import check_whole

__all__ = ["RePB", "WindowExcess"]

_ROUNDING = 2.0**-40  # of a mean: where all losses of a window are equal, all may lie below it by so little


@dataclass(frozen=True, kw_only=True)
class WindowExcess(Running):
    """By how much the latest measurement exceeds the mean of its window, and in how many epochs there was one.

    Args:
        window: see :class:`Running`.
    """

    window: int | None = 10

    def __post_init__(self) -> None:
        fix = "it is the number of training steps whose samples are compared with one another."
        if (window := check_whole("window", self.window, fix=fix)) < 1:
            raise ValueError(f"window is {window}, but must be at least 1: {fix}")
        object.__setattr__(self, "window", window)

    @property
    def columns(self) -> tuple[str, ...]:
        """The excess; the number of epochs that measured the sample; and the last of them."""
        return ("excess", "times", "last_epoch")

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """One more epoch."""
        columns["excess"][rows] = values
        columns["times"][rows] = np.nan_to_num(columns["times"][rows]) + 1
        columns["last_epoch"][rows] = epoch

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """The excess."""
        return columns["excess"]


@dataclass(frozen=True)
class RePB(OwnCountMethod):
    """Keep what exceeds the mean of its window, and the others with probability 1 - ρ (Zhou et al., ICLR 2026).

    The losses of a window of training steps come from nearly the same model, so they can be compared. A sample that the
    epoch before trained on is kept if its loss was not below the mean of its window. All others of these, and all that
    the epoch before left out, are kept with probability 1 - ρ, drawn independently. A sample never measured is kept.

    In epoch t (0-based) a sample that was trained on in n epochs before weighs (t + 1) / (n + 1): the epochs over those
    that trained on it, the current one included in both. That is 1 or more, and tends to 1 / p for a sample kept with
    probability p; weights are not normalised, so in the long run those of an epoch sum to about N. How many are kept
    follows from the losses: the saving is not known in advance, and at most ρ but for chance. The last epochs train on
    all data, with weight 1.

    Args:
        prune_ratio: ρ in [0, 1).
        window: how many training steps are compared with one another, one or more.
        annealing: share of the epochs at the end on all data.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    weighs_samples: ClassVar[bool] = True

    window: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "window", self.running().window)

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> WindowExcess:
        """The loss less the mean of its window."""
        return WindowExcess(window=self.window)

    def by_rule(self, owned: Owned, epoch: int) -> Chosen:
        """Those above the mean, those never measured, and a draw of the others."""
        above = (owned.columns["last_epoch"] == epoch - 1) & (owned.scores >= -_ROUNDING)
        certain = above | np.isnan(owned.scores)
        keep = certain | (owned.uniform() < 1 - self.prune_ratio)
        if not owned.count(keep):  # nothing was measured in the epoch before, and of few samples the draw may be none
            keep = owned.top_k(-owned.uniform(), 1)
        return Chosen(keep, np.where(certain, 1, 1 - self.prune_ratio).astype(np.float32))

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> float | NDArray[np.float32]:
        """(t + 1) / (n + 1)."""
        del ratio
        if chosen.inclusion is None:
            return 1.0
        times = np.nan_to_num(owned.columns["times"][chosen.keep]) + 1
        return ((owned.epoch + 1) / times).astype(np.float32)
