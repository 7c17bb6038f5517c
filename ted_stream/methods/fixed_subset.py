"""A fixed subset, and what each of its samples weighs, from a skip-list."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.method import Chosen, Method
from ted_stream.pruning import Owned
from ted_stream.pruning.settings import check_flag
from ted_stream.skip_list import DatasetLayout, read_skip_list

__all__ = ["FixedSubset"]


@dataclass(frozen=True)
class FixedSubset(Method):
    """Train on what a skip-list keeps, in every epoch, with the weights that it holds.

    A dataset's own ``skip_list=`` does the same without weights, and without a run folder; this is for lists that have
    some (CRAIG's), and for comparisons with methods that prune while training.

    Args:
        skip_list: path or URI of the list.
        apply_weights: multiply the losses by the list's weights, divided by their mean; false leaves them out.

    Raises:
        ValueError: for a setting that is none, at construction.
        TypeError: for a value of another type.
    """

    skip_list: str
    apply_weights: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.skip_list, str) or not self.skip_list.endswith(".parquet"):
            raise ValueError(f"skip_list is {self.skip_list!r}, but must be the path or URI of a skip-list, *.parquet.")
        check_flag("apply_weights", self.apply_weights, fix="whether the list's weights multiply the losses.")

    @property
    def weighs_samples(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where they are asked for."""
        return self.apply_weights

    def given(self, layout: DatasetLayout) -> Mapping[str, NDArray[np.float32]]:
        """The weights, 1 in a list without any; NaN for what it prunes."""
        return {"weight": read_skip_list(self.skip_list, layout=layout).weights_by_id()}

    def keep_ratio(self, epoch: int, num_epochs: int) -> None:
        """What the list keeps."""
        del epoch, num_epochs

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """The list's."""
        del epoch, k
        return Chosen(~np.isnan(owned.given["weight"]))

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> float | NDArray[np.float32]:
        """The list's, with mean 1 over what it keeps."""
        del ratio
        if not self.apply_weights:
            return 1.0
        kept = owned.given["weight"][chosen.keep]
        return (kept / owned.mean(kept)).astype(np.float32)
