"""What is kept of each class, and whether one of them is nearly gone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_rows", "count_kept", "find_scarce"]

_LITTLE = 0.1  # of what is expected
_FEWEST = 10  # expected samples of a class: of fewer, chance may leave none


def find_scarce(counts: NDArray[np.int64], first: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """The classes that have less than a tenth of their share in the first epoch, and of an equal share.

    The latter so that shares of classes that were asked for are none to warn of: a class that is cut to the size of
    the others is not gone.

    Args:
        counts: (C,) samples of every class in an epoch.
        first: the same of the run's first epoch, before anything was measured, or of the whole dataset.
    """
    total, known = int(counts.sum()), np.array(first, np.int64)
    if not total or not known.any():
        return []
    now = np.zeros(len(known), np.int64)
    now[: len(counts)] = counts[: len(known)]
    expected = np.minimum(total * known / known.sum(), total / np.count_nonzero(known))
    return np.flatnonzero((expected >= _FEWEST) & (now < _LITTLE * expected)).tolist()


def count_kept(labels: NDArray[np.int64], keep: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """(C,) samples of every class, of the kept ones alone where a mask is given.

    Args:
        labels: (N,) classes, from 0; below 0 where a sample has none.
        keep: (N,) mask.
    """
    known = labels >= 0 if keep is None else keep & (labels >= 0)
    return np.bincount(labels[known], minlength=int(labels.max(initial=-1)) + 1)


def class_rows(
    labels: NDArray[np.int64], kept: Sequence[tuple[int, NDArray[np.int64]]], names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What epochs kept of each class that the dataset has, by class.

    Args:
        labels: (N,) as :func:`count_kept` takes them.
        kept: epoch and (C,) kept samples of every class, of one epoch or more; the last is the one that is shown.
        names: of the classes, by number.

    Returns:
        Of each class ``label``, ``name`` (``None`` where it has none), ``samples``; ``kept`` and ``share`` of them, in
        the last of the epochs; ``least_share`` and ``least_epoch``, where the smallest share was kept; ``scarce``, the
        epochs in which the class was nearly gone.
    """
    of_all, last = count_kept(labels), kept[-1][1]
    scarce = [(epoch, set(find_scarce(counts, of_all))) for epoch, counts in kept]
    rows = []
    for label in np.flatnonzero(of_all).tolist():
        samples = int(of_all[label])
        least, least_epoch = min((int(counts[label]), epoch) for epoch, counts in kept)
        rows.append(
            {
                "label": label,
                "name": names[label] if label < len(names) else None,
                "samples": samples,
                "kept": int(last[label]),
                "share": int(last[label]) / samples,
                "least_share": least / samples,
                "least_epoch": least_epoch,
                "scarce": [epoch for epoch, found in scarce if label in found],
            }
        )
    return rows
