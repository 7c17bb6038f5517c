"""Epochs of a loop that does not prune, with what a `Pruner` gives a loop: batches, parts of them, a state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ted_stream.engine import PrunableData, Ranks
from ted_stream.pruning.batches import batch_size, split_rows
from ted_stream.trainers.reading import EpochReader

from .durations import beyond_the_end

__all__ = ["WholeEpochs"]


class WholeEpochs(nullcontext):
    """See :class:`~ted_stream.Pruner`, whose methods these are.

    Args:
        loader: of the training set.
        data: what decides on its samples, perhaps with a fixed skip-list.
        steps: batches of the whole run; the last epoch ends with them.
    """

    def __init__(self, loader: DataLoader, data: PrunableData, *, steps: int) -> None:
        super().__init__(self)
        self.steps, self._length = steps, len(loader)
        self._data = data
        self._reader = EpochReader(loader, data, Ranks())
        self._activate(sample_ids=True)  # by which the reader goes on
        self._share = 1.0

    def __exit__(self, *error: Any) -> None:
        self._data.activate(self._data.fixed_skip_list, sample_ids=False)

    def _activate(self, *, sample_ids: bool) -> None:
        Ranks().on_every_rank(lambda: self._data.activate(self._data.fixed_skip_list, sample_ids=sample_ids))

    def __iter__(self) -> Iterator[int]:
        """The epochs that are left."""
        self._reader.begin()
        while self._reader.epoch * self._length + self._reader.done < self.steps:
            yield self._reader.epoch

    def batches(self) -> Iterator[Any]:
        """The batches of this epoch that are left."""
        before = self._reader.epoch * self._length
        for batch, *_ in self._reader.read():
            self._reader.done += 1
            yield batch
            if before + self._reader.done == self.steps:
                break
        self._reader.end_epoch()

    def microbatches(self, batch: Any, size: int) -> Iterator[Any]:
        """The batch in parts of so many rows."""
        for rows, part in split_rows(batch, size):
            self._share = (rows.stop - rows.start) / batch_size(batch)
            yield part

    def loss(self, loss: Tensor) -> Tensor:
        """A part's share of the batch's loss."""
        return loss if self._share == 1 else loss * self._share

    def stretch(self, scheduler: LRScheduler) -> LRScheduler:
        """The scheduler: no epoch is pruned."""
        return scheduler

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; collective."""
        return self._reader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there.

        Raises:
            ValueError: if it lies beyond the run's end.
        """
        self._reader.load_state_dict(state)
        if (done := self._reader.epoch * self._length + self._reader.done) > self.steps:
            raise ValueError(beyond_the_end(f"{done}ba", f"{self.steps}ba"))
