"""Torch's learning-rate schedulers, set to where a full-data run would have them."""

import math
import warnings
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from ted_stream.engine import PruningEngine

__all__ = ["StretchedScheduler", "catch_up", "set_to", "steps_done", "takes"]

# Beside those with a closed form, these compute the rate from how far they are, and not from the rate before.
_CLOSED = (CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR)


def takes(scheduler: LRScheduler, position: Any) -> bool:
    """Whether a scheduler can be set to a position, a fraction of a step included."""
    if isinstance(scheduler, LambdaLR):
        try:
            return all(math.isfinite(function(position)) for function in scheduler.lr_lambdas)
        except (IndexError, KeyError, TypeError):  # a table of steps
            return False
    return isinstance(scheduler, _CLOSED) or hasattr(scheduler, "_get_closed_form_lr")


def set_to(scheduler: LRScheduler, position: float, *, is_last: bool) -> None:
    """Set a scheduler that takes it to a position.

    Args:
        scheduler: of torch.
        position: in its own steps.
        is_last: whether it will not be stepped again.
    """
    steps = getattr(scheduler, "total_steps", None)
    if steps is not None:
        # One cycle refuses more steps than it has, and a trainer may step it by one before it is set again.
        position = min(position, steps if is_last else steps - 1)
    if scheduler.last_epoch == position:
        return  # a full epoch: to the bit what the trainer does
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have whole steps
        scheduler.step(position)  # pyright: ignore[reportArgumentType]


def catch_up(scheduler: LRScheduler, position: float) -> None:
    """Step a scheduler that does not take a fraction of a step to the last whole one before a position."""
    while scheduler.last_epoch < int(position + 1e-9):
        scheduler.step()


def steps_done(engine: PruningEngine, at: tuple[int, int], lengths: tuple[int, int], *, accumulation: int) -> float:
    """The optimizer steps of a full-data run that stand for those that were made, a fraction included.

    Args:
        engine: of the run.
        at: the epoch, and how many of its batches have been trained on.
        lengths: batches of that epoch, and of a full one.
        accumulation: batches to an optimizer step; the last ones of an epoch make a step too.
    """
    (epoch, done), (length, full_length) = at, lengths
    position = engine.progress.positions(engine.plan, engine.records, -(-full_length // accumulation))
    return position(epoch, -(-done // accumulation), -(-length // accumulation))


class StretchedScheduler:
    """A scheduler that a loop steps after its optimizer's steps, and that goes as far as in a full-data run.

    An epoch of fewer steps counts as one of all, so every step is that many of the full run's, a fraction included.
    Schedulers that only know the rate before (SequentialLR, MultiplicativeLR) are stepped whole steps instead. All but
    ``step`` is the scheduler's own.

    Args:
        scheduler: of torch, made for the steps of the full run.
        position: tells how many of those have been made, as of now.
    """

    def __init__(self, scheduler: LRScheduler, position: Callable[[], float]) -> None:
        self.scheduler = scheduler
        self._position = position

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # while it is copied
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def step(self) -> None:
        """Come to where the full run's scheduler would be now."""
        position, scheduler = self._position(), self.scheduler
        if position == scheduler.last_epoch + 1:
            scheduler.step()  # a full epoch: to the bit what it would be without pruning
        elif takes(scheduler, position):
            set_to(scheduler, position, is_last=True)
        else:
            catch_up(scheduler, position)
