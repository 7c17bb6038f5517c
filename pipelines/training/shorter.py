"""The baseline of a run on all data for as many steps as a pruned one has, with a schedule that ends where it does."""

from __future__ import annotations

from typing import Any

from ted_stream.engine.plan import RunPlan
from ted_stream.methods import Method

from .durations import parse_duration
from .settings import SCHEDULE_UNITS, Settings, epochs

__all__ = ["shorter_run", "whole_batches"]


def whole_batches(samples: int, settings: Settings) -> int:
    """How many of an epoch's samples are trained on: with data.drop_last, those that make whole batches."""
    return samples - samples % settings.data.batch_size if settings.data.drop_last else samples


def shorter_run(settings: Settings, method: Method, *, samples: int) -> dict[str, Any]:
    """What to replace in the settings of a full-data run to train for as many steps as a method does.

    Times of the learning-rate schedule become shares of the run, so that what comes after a third of the full run comes
    after a third of the shorter one.

    Args:
        settings: of the full-data run, in epochs.
        method: whose saving is planned.
        samples: N, of the training split.

    Returns:
        Values by dotted key, for :func:`~.settings.replaced`.
    """
    batch, scheduler = settings.data.batch_size, settings.scheduler

    def batches(count: int) -> int:
        return count // batch if settings.data.drop_last else -(-count // batch)

    length = batches(samples)
    plan = RunPlan(method=method, num_samples=samples, epochs=epochs(settings, length))
    total = length * plan.epochs

    def share(time: str) -> str:
        duration = parse_duration(time, SCHEDULE_UNITS)
        return f"{min(1.0, duration.in_batches(length=length, steps=total) / total):.12f}dur"

    changes: dict[str, Any] = {
        "pruning.method": "none",
        "max_duration": f"{sum(batches(plan.kept(epoch) or samples) for epoch in range(plan.epochs))}ba",
    }
    if scheduler.warmup is not None:
        changes["scheduler.warmup"] = share(scheduler.warmup)
    if scheduler.milestones is not None:
        changes["scheduler.milestones"] = [share(time) for time in scheduler.milestones]
    return changes
