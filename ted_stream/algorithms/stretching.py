"""Learning-rate schedules that see one full epoch of progress per epoch, however many batches it has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from composer.core import State, Time, TimeUnit
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["ScheduleStretcher"]

_COMPOSER_MODULE = "composer.optim.scheduler"  # where Composer compiles its stateless schedulers into LambdaLR


def _is_compiled(scheduler: LRScheduler) -> bool:
    return isinstance(scheduler, LambdaLR) and any(
        getattr(function, "__module__", None) == _COMPOSER_MODULE for function in scheduler.lr_lambdas
    )


class ScheduleStretcher:
    """Keeps the learning rate of a pruned run where that of a full-data run is.

    An epoch of n batches stands for one of L, the full epoch's. Composer's schedules are computed from
    ``dataloader_len`` and ``timestamp.batch``: they are shown L, and the batch of the full run that has come as far.
    Native schedulers that are stepped every batch are stepped L times per epoch instead of n. Those stepped every
    epoch need nothing. The learning rate at every epoch's start and at the end then equals the full run's.

    Schedules in samples or tokens are left alone: they count what is really forwarded.

    Args:
        full_length: L in batches.
    """

    def __init__(self, full_length: int) -> None:
        self.full_length = full_length
        self._counts: dict[int, int] = {}

    def wrap(self, state: State) -> None:
        """Stretch Composer's compiled schedules, or stretch them anew."""
        for scheduler in state.schedulers:
            if _is_compiled(scheduler):
                scheduler.lr_lambdas = [self._stretched(function, state) for function in scheduler.lr_lambdas]

    def _stretched(self, function: Callable[[int], float], state: State) -> Callable[[int], float]:
        function = getattr(function, "__wrapped__", function)

        @wraps(function)
        def stretched(epoch: int) -> float:
            with self._full_epochs(state):
                return function(epoch)

        return stretched

    @contextmanager
    def _full_epochs(self, state: State) -> Iterator[None]:
        """Show the schedule a run of full epochs, for the length of one call."""
        timestamp, length = state.timestamp, state.dataloader_len
        if length is None:
            yield
            return
        done, batches = timestamp.batch_in_epoch.value, length.value
        if done < batches:
            # Stepped every batch: before the batch that was just trained is counted, hence + 1 and - 1.
            done_of_full = (done + 1) * self.full_length // batches - 1
        else:
            done_of_full = self.full_length  # stepped at the epoch's end
        state.timestamp = timestamp.copy(batch=timestamp.epoch.value * self.full_length + max(0, done_of_full))
        # Not through the property: it caps the value at the pruned epoch's length.
        state._dataloader_len = Time(self.full_length, TimeUnit.BATCH)
        try:
            yield
        finally:
            state.timestamp, state._dataloader_len = timestamp, length

    def before_batch(self, state: State) -> None:
        """Note how far native schedulers are, to see which of them the trainer steps every batch."""
        self._counts = {id(scheduler): scheduler.last_epoch for scheduler in _native(state)}

    def after_batch(self, state: State) -> None:
        """Catch native schedulers up, after the trainer stepped them once for the batch."""
        length = state.dataloader_len
        if length is None:
            return
        done, batches = state.timestamp.batch_in_epoch.value, length.value
        missing = done * self.full_length // batches - (done - 1) * self.full_length // batches - 1
        for scheduler in _native(state):
            if scheduler.last_epoch == self._counts.get(id(scheduler), scheduler.last_epoch):
                continue  # stepped every epoch
            for _ in range(missing):
                scheduler.step()


def _native(state: State) -> list[Any]:
    return [scheduler for scheduler in state.schedulers if not _is_compiled(scheduler)]
