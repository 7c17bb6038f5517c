"""SeTa: a random part of the samples, and of that a window over groups of like losses, from easy to hard."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.choices import choose_uniformly
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import OwnCountMethod
from ted_stream.pruning import ExponentialMean, Owned, num_kept
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.settings import check_number, check_whole

__all__ = ["SeTa", "group_by_value"]

_MOST_ITERATIONS = 1000


def group_by_value(owned: Owned, values: NDArray[np.float32], num_groups: int) -> tuple[NDArray[np.int64], int]:
    """One-dimensional k-means by Lloyd's iteration (1982), the same bits for every number of ranks.

    Centres start at evenly spaced quantiles, (j + 1/2) / g. Where quantiles coincide, others are taken of the values
    that are no centre yet, so that there are fewer groups only where there are fewer different values. A value half-way
    between two centres belongs to the lower one. A group that loses all its values keeps its centre, and counts as none
    if it stays empty.

    Args:
        owned: for figures of all ranks; one small exchange for every iteration.
        values: (n,) float32, finite, or NaN for what belongs to no group.
        num_groups: g, at least one.

    Returns:
        The group of each, (n,) int64 from 0, the lowest, and -1 for NaN; and how many groups there are, none empty.
    """
    known = ~np.isnan(values)
    centres = _first_centres(owned, values, num_groups)
    if not len(centres):
        return np.full(len(values), -1, np.int64), 0
    # Sums of whole numbers do not depend on the order of their terms, and those of sorted values are had from one
    # cumulative sum: an iteration passes over no sample. With fewer than 2^b values below 2^m, units of 2^(b + m - 62)
    # keep every sum below 2^62.
    ordered = np.sort(values[known]).astype(np.float64)
    exponent = 62 - np.frexp(owned.count(known))[1] - np.frexp(owned.largest(np.abs(values)))[1]
    sums = np.cumsum(np.append(0, np.rint(np.ldexp(ordered, exponent)).astype(np.int64)))
    for _ in range(_MOST_ITERATIONS):
        bounds = np.concatenate([[0], np.searchsorted(ordered, _middles(centres), side="right"), [len(ordered)]])
        mine = np.concatenate([np.diff(bounds), np.diff(sums[bounds])])
        sizes, totals = np.split(owned.communicator.all_reduce_sum(mine), 2)
        means = np.where(sizes > 0, np.ldexp(totals / np.maximum(sizes, 1), -exponent), centres)
        if np.array_equal(means, centres):
            break
        centres = np.maximum.accumulate(means)  # rounding could swap neighbours
    groups = np.searchsorted(_middles(centres), values)
    filled = np.cumsum(owned.counts_of(known, groups, len(centres)) > 0)
    return np.where(known, filled[groups] - 1, -1), int(filled[-1])


def _middles(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    return (centres[:-1] + centres[1:]) / 2


def _first_centres(owned: Owned, values: NDArray[np.float32], num_groups: int) -> NDArray[np.float64]:
    """(g,) increasing; fewer, where there are fewer different values."""
    centres = np.empty(0)
    while missing := num_groups - len(centres):
        others = np.where(np.isin(values, centres), np.float32(np.nan), values)
        found = owned.quantiles(others, [(j + 0.5) / missing for j in range(missing)])
        if np.isnan(found[0]):
            break
        centres = np.unique([*centres, *found])
    return centres


@dataclass(frozen=True)
class SeTa(OwnCountMethod):
    """Draw 1 - r of all samples, and keep a window of their groups of like losses (Zhou, Gao and Wang, CVPR 2025).

    The latest losses of the drawn samples are put into g groups by k-means, in order from easy to hard. The window of
    epoch t holds w = round(a·g) of them, from group t mod (g - w + 1) on: it slides by one group in every epoch, and
    begins at the easiest again once it has held the hardest. A drawn sample that was never measured is kept, so in the
    first epoch all are. Different losses that are fewer than g are a group each. How many are kept follows from the
    losses: the saving is not known in advance. The last epochs train on all data.

    Args:
        prune_ratio: r in [0, 1), the share of all samples that is left out at random.
        groups: g, one or more.
        window_share: a in (0, 1], the share of the groups that the window holds; 1 leaves only the draw.
        annealing: share of the epochs at the end on all data.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    groups: int = field(default=10, kw_only=True)
    window_share: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        window = check_number("window_share", self.window_share, "(0, 1]", fix="it is a share of the groups.")
        groups = check_whole("groups", self.groups, fix="it is how many groups the losses make.")
        if groups < 1:
            raise ValueError(f"groups is {groups}, but must be at least 1: it is how many groups the losses make.")
        if round(window * groups) < 1:
            raise ValueError(
                f"window_share is {window!r}, but of groups={groups} it holds round({window * groups:.6g}) = 0, so no "
                "sample would be kept. Pass a larger window_share, or more groups."
            )
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "window_share", window)

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> ExponentialMean:
        """The latest measurement."""
        return ExponentialMean(alpha=0.0)

    def by_rule(self, owned: Owned, epoch: int) -> Chosen:
        """Of those drawn, the ones in the window and the ones without a loss."""
        drawn = choose_uniformly(owned, num_kept(1 - self.prune_ratio, owned.num_samples)).keep
        groups, num_groups = group_by_value(owned, np.where(drawn, owned.scores, np.float32(np.nan)), self.groups)
        width = max(1, round(self.window_share * num_groups))
        first = epoch % (max(0, num_groups - width) + 1)
        in_window = (first <= groups) & (groups < first + width)
        return Chosen(drawn & (in_window | (groups < 0)))
