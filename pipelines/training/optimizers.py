"""Optimizers and learning-rate schedules by name: torch's and ours, the same whatever trains."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from . import settings as config
from .durations import parse_duration
from .lars import LARS, lars_groups

__all__ = ["build_optimizer", "build_scheduler"]


def build_optimizer(options: config.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config over a model's parameters.

    AdamW decays only tensors with two or more axes, LARS adapts and decays only these (see `lars_groups`); SGD
    decays everything, as the papers compared with do.
    """
    given = _given(options, "momentum", "nesterov", "weight_decay", "trust_coefficient", "betas", kind="optimizer")
    if options.name == "lars":
        return LARS(lars_groups(model), options.lr, **given)
    trained = [p for p in model.parameters() if p.requires_grad]
    if options.name == "adamw":
        decayed = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=options.lr, **given)
    return torch.optim.SGD(trained, lr=options.lr, **given)


def build_scheduler(
    options: config.Scheduler, optimizer: torch.optim.Optimizer, *, length: int, steps: int
) -> LRScheduler:
    """The learning-rate schedule of a config, to be stepped after every batch.

    Batch b (from 0) of a run on full data has the rate of position b. Those of Composer would have that of b - 1: it
    steps them before it counts the batch.

    Args:
        options: the config's section.
        optimizer: what is scheduled.
        length: batches of an epoch on full data.
        steps: batches of the run on full data.

    Raises:
        ConfigError: for a time that the run does not last for.
    """
    for name, time in config.schedule_times(options).items():
        if parse_duration(time, config.SCHEDULE_UNITS).in_batches(length=length, steps=steps) > steps:
            raise config.beyond_the_run(name, time, f"{steps}ba ({length}ba an epoch)")
    if options.name != "onecycle":
        return LambdaLR(optimizer, _factor(options, length=length, steps=steps))
    given = _given(options, "pct_start", "div_factor", "final_div_factor", kind="scheduler")
    max_lr = options.max_lr if options.max_lr is not None else optimizer.param_groups[0]["lr"]
    # Momentum stays where the config put it, unless cycling is asked for.
    cycle = bool(options.cycle_momentum)
    return OneCycleLR(optimizer, max_lr, total_steps=steps, cycle_momentum=cycle, **given)


class OneCycleLR(lr_scheduler.OneCycleLR):
    """Torch's, of a run that may go on for longer than it was begun for: the rest is planned anew."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of a state, within this run's length."""
        planned = {name: vars(self)[name] for name in ("total_steps", "_schedule_phases")}
        super().load_state_dict({**state_dict, **planned})


def _factor(options: config.Scheduler, *, length: int, steps: int) -> Callable[[float], float]:
    """What the learning rate is multiplied by at a position in batches, a fraction included."""

    def batches(text: str) -> float:
        return parse_duration(text, config.SCHEDULE_UNITS).in_batches(length=length, steps=steps)

    warmup = batches(options.warmup) if options.warmup else 0.0
    final = options.final or 0.0
    gamma = 0.1 if options.gamma is None else options.gamma
    milestones = sorted(map(batches, options.milestones or ()))

    def factor(position: float) -> float:
        if position < warmup:
            return position / warmup
        if options.name == "multistep":
            return gamma ** bisect_right(milestones, position)
        done = min(1.0, (position - warmup) / max(steps - warmup, 1))
        if options.name == "linear":
            return 1 + (final - 1) * done
        if options.name == "cosine":
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
        return 1.0

    return factor


def _given(options: Any, *names: str, kind: str) -> dict[str, Any]:
    """The options that have a value and that the chosen name takes."""
    taken = config.CHOICES[kind][options.name]
    return {name: getattr(options, name) for name in names if name in taken and getattr(options, name) is not None}
