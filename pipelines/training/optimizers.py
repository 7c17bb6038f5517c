"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from typing import Any

import torch
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
    MultiStepWithWarmupScheduler,
)
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from . import settings as config
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
    if options.name == "adamw":
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=options.lr, **given)
    return torch.optim.SGD(model.parameters(), lr=options.lr, **given)


def build_scheduler(
    options: config.Scheduler, optimizer: torch.optim.Optimizer, *, steps: int
) -> ComposerScheduler | LRScheduler:
    """The learning-rate schedule of a config, to be stepped at every batch.

    Args:
        options: the config's section.
        optimizer: what is scheduled.
        steps: training steps of the whole run on full data.
    """
    warmup = options.warmup or "0ba"
    if options.name == "constant":
        return ConstantWithWarmupScheduler(t_warmup=warmup)
    if options.name == "linear":
        return LinearWithWarmupScheduler(t_warmup=warmup, alpha_f=options.final or 0.0)
    if options.name == "cosine":
        return CosineAnnealingWithWarmupScheduler(t_warmup=warmup, alpha_f=options.final or 0.0)
    if options.name == "multistep":
        gamma = 0.1 if options.gamma is None else options.gamma
        assert options.milestones
        return MultiStepWithWarmupScheduler(t_warmup=warmup, milestones=[*options.milestones], gamma=gamma)
    given = _given(options, "pct_start", "div_factor", "final_div_factor", kind="scheduler")
    max_lr = options.max_lr if options.max_lr is not None else optimizer.param_groups[0]["lr"]
    # Momentum stays where the config put it, unless cycling is asked for.
    cycle = bool(options.cycle_momentum)
    return OneCycleLR(optimizer, max_lr, total_steps=steps, cycle_momentum=cycle, **given)


def _given(options: Any, *names: str, kind: str) -> dict[str, Any]:
    """The options that have a value and that the chosen name takes."""
    taken = config.CHOICES[kind][options.name]
    return {name: getattr(options, name) for name in names if name in taken and getattr(options, name) is not None}
