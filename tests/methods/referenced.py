"""Methods that are given something, on datasets of any size: by a formula instead of from a file."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods import FixedSubset, Learnability
from ted_stream.skip_list import DatasetLayout

__all__ = ["Listed", "Referenced"]


class Referenced(Learnability):
    """Every seventh sample has no reference loss."""

    def given(self, layout: DatasetLayout) -> Mapping[str, NDArray[np.float32]]:
        """Between 0 and 1."""
        ids = np.arange(layout.num_samples)
        losses = (ids * 37 % 101 / 101).astype(np.float32)
        losses[::7] = np.nan
        return {"reference": losses}


class Listed(FixedSubset):
    """Two of every three samples, of two weights."""

    def given(self, layout: DatasetLayout) -> Mapping[str, NDArray[np.float32]]:
        """1 or 3; NaN for those pruned."""
        ids = np.arange(layout.num_samples)
        return {"weight": np.where(ids % 3 == 1, np.nan, 1 + 2 * (ids % 2)).astype(np.float32)}
