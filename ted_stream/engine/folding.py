"""What an epoch's measurements become at its end."""

import numpy as np

from ted_stream.methods import Method
from ted_stream.pruning import Measurements, ScoreStore

__all__ = ["fold_epoch"]


def fold_epoch(method: Method, store: ScoreStore, measurements: Measurements, epoch: int) -> tuple[int, int]:
    """Take over the choice's columns, the classes that were seen, and the measurements; collective.

    Args:
        method: that measured, or nothing.
        store: of its scores.
        measurements: of this rank.
        epoch: that they were made in.

    Returns:
        How many samples all ranks forwarded, repeats included, and how many measurements were not finite.

    Raises:
        ValueError: for ids that there are not, or a sample of another class than before; on every rank alike.
    """
    store.settle()
    store.label(measurements)
    if method.measure() is None:
        counts = np.array([len(measurements)], np.int64)
        return int(store.communicator.all_reduce_sum(counts)[0]), 0
    update = store.update(measurements, epoch=epoch)
    return update.measured, update.non_finite
