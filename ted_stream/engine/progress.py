"""By what learning-rate schedules come on, where epochs differ in length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ted_stream.engine.plan import Position, RunPlan
from ted_stream.engine.record import EpochRecord
from ted_stream.pruning.settings import check_choice
from ted_stream.skip_list import SkipList

__all__ = ["Progress", "ProgressLike", "checked_progress"]

ProgressLike: TypeAlias = str | Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Progress:
    """By what learning-rate schedules come on in a pruned epoch.

    Attributes:
        name: ``epochs``, ``samples``, or ``sizes`` and a digest of them; what a checkpoint holds.
        sizes: (N,) int64 by sample id, such as tokens, where an epoch counts for the sum of those that it keeps.
    """

    name: str
    sizes: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return repr(self.name)

    def kept_size(self, skip_list: SkipList) -> int | None:
        """What an epoch counts for that keeps what the list keeps; ``None`` without sizes."""
        return None if self.sizes is None else int(self.sizes[skip_list.keep_mask()].sum())

    def positions(self, plan: RunPlan, records: Sequence[EpochRecord], full_length: int) -> Position:
        """How far a run has come, in batches (or steps) of the full run.

        An epoch to come counts for what the plan keeps in it, of samples of the mean size.

        Args:
            plan: of the run.
            records: of the epochs that have begun.
            full_length: L, batches of a full epoch.

        Returns:
            A function of (epoch, its batches done, its batches).

        Raises:
            ValueError: if the method decides on a count in an epoch itself, and progress is not by epochs.
        """
        if self.name == "epochs":
            return plan.positions(full_length, None)
        amounts = plan.forecast({record.epoch: record.kept for record in records}, progress=self.name)
        if self.sizes is not None:
            known = {record.epoch: record.kept_size for record in records}
            mean = float(self.sizes.mean())
            amounts = [known.get(epoch) or round(count * mean) for epoch, count in enumerate(amounts)]
        return plan.positions(full_length, amounts)

    def refuse_other_length(self, num_samples: int) -> None:
        """Refuse sizes of another dataset.

        Raises:
            ValueError: naming both numbers.
        """
        if self.sizes is not None and len(self.sizes) != num_samples:
            raise ValueError(
                f"progress has the sizes of {len(self.sizes)} samples, but the dataset has {num_samples}. Pass one "
                "size of every sample, by sample id."
            )


def checked_progress(given: Any, plan: RunPlan) -> Progress:
    """What progress a host was given.

    Args:
        given: ``epochs``, ``samples``, (N,) sizes of the samples by id, or ``None``: by samples where the method's
            counts are known in advance, else by epochs.
        plan: of the method.

    Raises:
        TypeError: sizes are no whole numbers.
        ValueError: there is no such progress, a size is below 1, or the method cannot have that progress.
    """
    if given is None:
        return Progress("epochs" if plan.save_ratio is None else "samples")
    progress = (
        Progress(check_choice("progress", given, ("epochs", "samples"))) if isinstance(given, str) else _by_sizes(given)
    )
    if progress.name != "epochs":
        plan.forecast({}, progress=progress.name)  # refuses what is not known in advance
    return progress


def _by_sizes(given: Any) -> Progress:
    sizes = np.asarray(given)
    if sizes.dtype.kind not in "iu" or sizes.ndim != 1 or not len(sizes):
        raise TypeError(
            f"progress is {_shown(given, sizes)}, but it must be 'epochs', 'samples', or the size of every sample as "
            "a whole number, such as its tokens: an array of shape (N,), by sample id."
        )
    if sizes.min() < 1:
        at = int(sizes.argmin())
        raise ValueError(f"progress has the size {sizes[at]} for sample {at}; sizes start at 1.")
    sizes = sizes.astype(np.int64)
    return Progress(f"sizes {hashlib.sha256(sizes.tobytes()).hexdigest()[:12]}", sizes)


def _shown(given: Any, array: NDArray[Any]) -> str:
    return f"an array of {array.dtype} of shape {array.shape}" if array.ndim else repr(given)
