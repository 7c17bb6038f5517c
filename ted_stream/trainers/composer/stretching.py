"""Learning-rate schedules that see as much progress as a full-data run makes, however many batches an epoch has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from composer.core import State, Time, TimeUnit
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ted_stream.trainers.schedules import catch_up, set_to, takes

__all__ = ["ScheduleStretcher"]

_COMPOSER_MODULE = "composer.optim.scheduler"  # where Composer compiles its stateless schedulers into LambdaLR
_ORIGIN = "_ted_stream_origin"


def _is_compiled(scheduler: LRScheduler) -> bool:
    return isinstance(scheduler, LambdaLR) and any(
        getattr(function, "__module__", None) == _COMPOSER_MODULE for function in scheduler.lr_lambdas
    )


class _Fractional(Time[int]):
    """A time between two batches or samples, which Composer's schedules compute with like any other."""

    def __init__(self, value: float, unit: TimeUnit) -> None:
        super().__init__(0, unit)
        self._value: Any = value

    def _like(self, value: float) -> "_Fractional":
        return _Fractional(value, self.unit)

    def __add__(self, other: Any) -> "_Fractional":
        return self._like(self.value + self._parse(other).value)

    def __sub__(self, other: Any) -> "_Fractional":
        return self._like(self.value - self._parse(other).value)

    def __neg__(self) -> "_Fractional":
        return self._like(-self.value)

    def __mod__(self, other: Any) -> "_Fractional":
        return self._like(self.value % self._parse(other).value)

    def __mul__(self, other: Any) -> Any:
        return self._like(self.value * other) if isinstance(other, (int, float)) else super().__mul__(other)

    def __truediv__(self, other: Any) -> Any:
        return self._like(self.value / other) if isinstance(other, (int, float)) else super().__truediv__(other)


class ScheduleStretcher:
    """Keeps the learning rate of a pruned run where that of a full-data run is.

    A batch of an epoch of n batches is L / n batches of the full epoch's L. Composer's schedules are computed from
    ``dataloader_len`` and ``timestamp.batch``: they are shown L, and how many batches of the full run stand for what
    was trained on, a fraction included. Native schedulers that are stepped every batch are set to that number too; a
    list of several, and those that only know the rate before (SequentialLR, MultiplicativeLR), are stepped whole
    batches instead. Those stepped every epoch need nothing.

    Schedules in samples or tokens count what is really forwarded; in a run that is planned in samples, samples are
    stretched as batches are.

    Args:
        full_length: L in batches.
        position: maps (epoch, batches of it that are done, batches that it has) to batches of the full run; may be
            replaced between epochs.
        duration: of the full run, in the unit that it is planned in.
        batch_samples: samples of a full epoch, by L.
    """

    def __init__(
        self,
        full_length: int,
        position: Callable[[int, int, int], float],
        duration: Time[int],
        batch_samples: float,
    ) -> None:
        self.full_length = full_length
        self.position = position
        self.duration = duration
        self.batch_samples = batch_samples
        self._counts: dict[int, float] = {}

    def wrap(self, state: State) -> None:
        """Stretch Composer's compiled schedules, or stretch them anew; at the start of a fit."""
        epoch, done = state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value
        assert state.dataloader_len is not None
        position = self.position(epoch, done, state.dataloader_len.value)
        for scheduler in state.schedulers:
            # Given to a further fit: one that a run goes on with has been stepped in an epoch before.
            is_new = epoch > 0 and scheduler.last_epoch == 0
            if _is_compiled(scheduler):
                functions = [getattr(function, "__wrapped__", function) for function in scheduler.lr_lambdas]
                if is_new:  # its first rate was made from the batches of the pruned epochs
                    with self._full_epochs(state, position):
                        _set_rates(scheduler, [function(0) for function in functions])
                scheduler.lr_lambdas = [self._stretched(function, state) for function in functions]
            elif is_new or state.timestamp.batch == 0:
                _set_origin(scheduler, position - scheduler.last_epoch)

    def _stretched(self, function: Callable[[int], float], state: State) -> Callable[[int], float]:
        @wraps(function)
        def stretched(epoch: int) -> float:
            with self._full_epochs(state, self._stepped_at(state)):
                return function(epoch)

        return stretched

    def _stepped_at(self, state: State) -> float | None:
        """The batch of the full run that a schedule is to see when the trainer steps it."""
        if state.dataloader_len is None:
            return None
        epoch, done = state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value
        batches = state.dataloader_len.value
        if done < batches:
            # Stepped every batch: before the batch that was just trained is counted, hence + 1 and - 1.
            return max(0.0, self.position(epoch, done + 1, batches) - 1)
        return self.position(epoch, batches, batches)  # stepped at the epoch's end

    @contextmanager
    def _full_epochs(self, state: State, batch: float | None) -> Iterator[None]:
        """Show the schedule a run of full epochs, for the length of one call."""
        timestamp, length, max_duration = state.timestamp, state.dataloader_len, state.max_duration
        if batch is None:
            yield
            return
        shown: dict[str, Any] = {"batch": _Fractional(batch, TimeUnit.BATCH)}
        if self.duration.unit == TimeUnit.SAMPLE:
            shown["sample"] = _Fractional(batch * self.batch_samples, TimeUnit.SAMPLE)
        state.timestamp = timestamp.copy(**shown)
        # Not through the property: it caps the value at the pruned epoch's length.
        state._dataloader_len = Time(self.full_length, TimeUnit.BATCH)
        state.max_duration = self.duration
        try:
            yield
        finally:
            state.timestamp, state._dataloader_len, state.max_duration = timestamp, length, max_duration

    def before_batch(self, state: State) -> None:
        """Note how far native schedulers are, to see which of them the trainer steps every batch."""
        self._counts = {id(scheduler): scheduler.last_epoch for scheduler in _native(state)}

    def after_batch(self, state: State) -> None:
        """Set native schedulers to where they should be, after the trainer stepped them once for the batch."""
        length = state.dataloader_len
        if length is None:
            return
        epoch, done = state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value
        position = self.position(epoch, done, length.value)
        native = _native(state)
        for scheduler in native:
            if scheduler.last_epoch == self._counts.get(id(scheduler), scheduler.last_epoch):
                continue  # stepped every epoch
            steps = position - _origin(scheduler)
            if len(native) == 1 and takes(scheduler, steps):
                set_to(scheduler, steps, is_last=_is_last_batch(state))
            else:
                catch_up(scheduler, steps)


def _set_rates(scheduler: Any, factors: list[float]) -> None:
    for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, factors, strict=True):
        group["lr"] = base * factor
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def _origin(scheduler: LRScheduler) -> float:
    """The batch of the full run at which a native scheduler counts 0."""
    return vars(scheduler).get(_ORIGIN, 0.0)


def _set_origin(scheduler: LRScheduler, origin: float) -> None:
    """Note it on the scheduler, whose attributes are its state in checkpoints."""
    if origin != _origin(scheduler):
        vars(scheduler)[_ORIGIN] = origin


def _native(state: State) -> list[Any]:
    return [scheduler for scheduler in state.schedulers if not _is_compiled(scheduler)]


def _is_last_batch(state: State) -> bool:
    assert state.max_duration is not None
    assert state.dataloader_len is not None
    in_last_epoch = state.timestamp.epoch.value == state.max_duration.value - 1
    return in_last_epoch and state.timestamp.batch_in_epoch >= state.dataloader_len
