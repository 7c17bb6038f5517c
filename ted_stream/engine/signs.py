"""Figures of an epoch by which a degenerate selection shows, the same on every rank."""

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning import Communicator, Owned

__all__ = ["LITTLE", "classes_of", "count_targets", "scores_alike"]

LITTLE = 0.1  # of what is expected
_MOST_CLASSES = 1 << 16  # targets that are numbered further are no classes
_ROUNDING = 1e-6  # of the largest score


def count_targets(labels: NDArray[np.int64] | None, communicator: Communicator) -> NDArray[np.int64]:
    """(C,) samples of every class over all ranks, repeats included; what is numbered too far in one last class more.

    Collective.

    Args:
        labels: (m,) of this rank, below zero where a sample has none; ``None`` where its targets are no classes.
        communicator: the ranks.
    """
    labels = np.empty(0, np.int64) if labels is None else np.minimum(labels[labels >= 0], _MOST_CLASSES)
    largest = int(np.max(communicator.all_gather(np.array([labels.max(initial=-1)], np.int64))))
    return communicator.all_reduce_sum(np.bincount(labels, minlength=largest + 1).astype(np.int64))


def classes_of(targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts of targets where they are classes; empty where some are numbered too far."""
    return targets if len(targets) <= _MOST_CLASSES else np.empty(0, np.int64)


def scores_alike(owned: Owned) -> bool:
    """Whether all samples are measured and their scores are the same, up to rounding; collective."""
    scores = owned.scores  # NaN of a sample that was never measured goes through min and max
    mine = np.array([scores.min(initial=np.inf), scores.max(initial=-np.inf)], np.float64)
    lows, highs = np.stack(owned.communicator.all_gather(mine)).T
    low, high = lows.min(), highs.max()
    return bool(np.isfinite([low, high]).all() and high - low <= _ROUNDING * max(abs(low), abs(high)))
