"""By what learning-rate schedules come on, where epochs differ in length."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ted_stream.engine.plan import Position, RunPlan
from ted_stream.engine.record import EpochRecord
from ted_stream.skip_list import SkipList

__all__ = ["BY_EPOCHS", "Progress", "ProgressLike", "checked_progress", "refuse_other_progress"]

ProgressLike: TypeAlias = str | Sequence[int] | NDArray[np.integer]
LARGEST = 2**31 - 1


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
        """How far a run has come, in batches (or steps) of the full run, as far as the records tell of its epochs.

        An epoch to come counts for what the plan keeps in it, of samples of the mean size. With sizes, what an epoch
        really keeps decides on its part of what is left of the run: what has been left behind does not move again.

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
        kept = plan.forecast({record.epoch: record.kept for record in records})
        if self.sizes is None:
            return plan.positions(full_length, kept)
        known = {record.epoch: record.kept_size for record in records if record.kept_size is not None}
        starts = _starts(plan, full_length, [count * self._mean for count in kept], known)

        def position(epoch: int, done: int, batches: int) -> float:
            if epoch >= plan.epochs:
                return starts[-1]
            start, end = starts[epoch : epoch + 2]
            return end if done == batches else start + (end - start) * (done / batches)

        return position

    @cached_property
    def _mean(self) -> float:
        """Of the sizes; once, since positions are asked for at every step."""
        return 1.0 if self.sizes is None else float(self.sizes.mean())

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


BY_EPOCHS = Progress("epochs")


def _starts(plan: RunPlan, full_length: int, forecast: Sequence[float], known: Mapping[int, int]) -> list[float]:
    """Where the epochs start, and at last where the run ends."""
    total = full_length * plan.full_epochs(range(plan.epochs))
    planned = [plan.share(epoch) * size for epoch, size in enumerate(forecast)]
    left = [*accumulate(reversed(planned), initial=0.0)][::-1]  # from each epoch on
    starts = [0.0]
    for epoch in range(plan.epochs - 1):
        size = plan.share(epoch) * known[epoch] if epoch in known else planned[epoch]
        starts.append(starts[-1] + (total - starts[-1]) * (size / (size + left[epoch + 1])))
    return [*starts, total]


def checked_progress(given: Any, plan: RunPlan) -> Progress:
    """What progress a host was given.

    Args:
        given: ``epochs``, ``samples``, (N,) sizes of the samples by id, or ``None``: by samples where the method's
            counts are known in advance, else by epochs.
        plan: of the method.

    Raises:
        TypeError: it is neither text nor whole numbers.
        ValueError: there is no such progress, a size is out of bounds, or the method cannot have that progress.
    """
    if given is None:
        return Progress("epochs" if plan.save_ratio is None else "samples")
    if isinstance(given, str) and given in ("epochs", "samples"):
        progress = Progress(given)
    elif isinstance(given, str):
        raise ValueError(f"progress is {given!r}, {_BUT}")
    else:
        progress = _by_sizes(given)
    if progress.name != "epochs":
        plan.forecast({}, progress="samples" if progress.sizes is None else "sizes")  # refuses what is not known yet
    return progress


_BUT = (
    "but it must be 'epochs', 'samples', or the size of every sample as a whole number, such as its tokens: an array "
    "of shape (N,), by sample id."
)


def _by_sizes(given: Any) -> Progress:
    try:
        sizes = np.asarray(given)
    except ValueError as error:  # rows of different lengths
        raise TypeError(f"progress is a {type(given).__name__} of no one shape ({error}), {_BUT}") from error
    if sizes.dtype.kind not in "iu" or sizes.ndim != 1 or not len(sizes):
        shown = f"an array of {sizes.dtype} of shape {sizes.shape}" if sizes.ndim else repr(given)
        raise TypeError(f"progress is {shown}, {_BUT}")
    for at in (int(sizes.argmin()), int(sizes.argmax())):
        if not 1 <= sizes[at] <= LARGEST:
            raise ValueError(f"progress has the size {sizes[at]} for sample {at}; sizes are from 1 to {LARGEST}.")
    sizes = sizes.astype(np.int64)
    name = f"sizes {hashlib.sha256(sizes.tobytes()).hexdigest()[:12]}"
    return Progress(name, sizes)


def refuse_other_progress(before: str, now: Progress) -> None:
    """Refuse to go on with learning-rate schedules that have come elsewhere.

    Args:
        before: the name of the checkpoint's.
        now: this run's.

    Raises:
        ValueError: naming both.
    """
    if before != now.name:
        raise ValueError(
            f"The checkpoint was made with progress={before!r}, but this run has progress={now.name!r}: the learning "
            "rate would jump to where the other one has it. Pass the progress of the checkpoint, start a new run, or "
            "pass allow_other_settings=True if you want the jump."
        )
