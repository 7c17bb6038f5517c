"""Methods that keep what a schedule says, or decide on a count of their own until they anneal."""

import inspect
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from warnings import warn

import numpy as np

from ted_stream.methods.method import Chosen, Method
from ted_stream.pruning import ConstantSchedule, KeepRatioSchedule, Owned, RollerCoasterSchedule, make_schedule
from ted_stream.pruning.settings import check_flag

__all__ = ["CorrectedMethod", "OwnCountMethod", "ScheduledMethod"]

_DEFAULT_BETA = 0.25


@dataclass(frozen=True)
class ScheduledMethod(Method):
    """A method whose keep ratio falls along a schedule.

    Args:
        prune_ratio: s in [0, 1), the fraction of samples that the schedule works towards pruning.
        schedule: ``roller-coaster``, ``constant``, ``linear`` or ``cosine`` (TED, Fig. 7).
        beta: shape of the roller-coaster, 0.25 by default; the paper uses 0.2 to 0.3.
        annealing: γ in [0, 1), the share of epochs at the end on all data; the paper: 0.125 for images, 0 for language.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    prune_ratio: float
    _: KW_ONLY
    schedule: str = "roller-coaster"
    beta: float | None = None
    annealing: float = 0.125

    def __post_init__(self) -> None:
        self._put("prune_ratio", self.keep_ratios.prune_ratio)
        self._put("annealing", self.keep_ratios.annealing)
        if self.beta is not None:
            self._put("beta", RollerCoasterSchedule(prune_ratio=self.prune_ratio, beta=self.beta).beta)
            if self.schedule != "roller-coaster":
                self._warn_of("beta", f"schedule={self.schedule!r} has no such shape")

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _warn_of(self, name: str, reason: str) -> None:
        """Warn of a setting that has no effect, at the line where the method is made."""
        level, frame = 1, inspect.currentframe()
        while frame is not None and frame.f_locals.get("self") is self:
            level, frame = level + 1, frame.f_back
        warn(f"{name}={getattr(self, name)!r} has no effect: {reason}. Drop it.", UserWarning, stacklevel=level)

    @cached_property
    def keep_ratios(self) -> KeepRatioSchedule:
        """The schedule that the settings name."""
        beta = _DEFAULT_BETA if self.beta is None else self.beta
        return make_schedule(self.schedule, prune_ratio=self.prune_ratio, annealing=self.annealing, beta=beta)

    def keep_ratio(self, epoch: int, num_epochs: int) -> float:
        """The schedule's r_t."""
        return self.keep_ratios.keep_ratio(epoch, num_epochs)


@dataclass(frozen=True, kw_only=True)
class CorrectedMethod(ScheduledMethod):
    """A scheduled method whose loss is divided by the keep ratio.

    Args:
        loss_correction: divide the loss by r_t while pruning (TED, eq. 23). The factor is lost on optimizers whose
            updates do not depend on the scale of the gradient (Adam, LARS).
    """

    loss_correction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("loss_correction", self.loss_correction, fix="whether to divide the loss by the keep ratio.")

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> float:
        """1 / r_t."""
        del owned, chosen
        return 1 / ratio if self.loss_correction else 1.0


@dataclass(frozen=True)
class OwnCountMethod(Method):
    """A method whose rule decides how many samples an epoch keeps; the last epochs train on all data.

    Args:
        prune_ratio: in [0, 1), what the rule makes of it.
        annealing: share of the epochs at the end on all data.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    prune_ratio: float
    _: KW_ONLY
    annealing: float = 0.125

    def __post_init__(self) -> None:
        checked = self._schedule
        object.__setattr__(self, "prune_ratio", checked.prune_ratio)
        object.__setattr__(self, "annealing", checked.annealing)

    @property
    def _schedule(self) -> ConstantSchedule:
        return ConstantSchedule(prune_ratio=self.prune_ratio, annealing=self.annealing)

    def keep_ratio(self, epoch: int, num_epochs: int) -> float | None:
        """The rule's own count, then all."""
        return None if self._schedule.is_pruning(epoch, num_epochs) else 1.0

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """By the rule, then all."""
        return self.by_rule(owned, epoch) if k is None else Chosen(np.ones(len(owned), np.bool_))

    @abstractmethod
    def by_rule(self, owned: Owned, epoch: int) -> Chosen:
        """What the rule keeps of the samples, at least one (see :meth:`Method.choose`)."""
