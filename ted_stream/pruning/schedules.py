"""Keep ratios: which fraction of the training set each epoch trains on."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from ted_stream.pruning.settings import check_choice, check_number

__all__ = [
    "SCHEDULES",
    "ConstantSchedule",
    "CosineSchedule",
    "KeepRatioSchedule",
    "LinearSchedule",
    "RollerCoasterSchedule",
    "make_schedule",
    "num_kept",
]


def num_kept(keep_ratio: float, num_samples: int) -> int:
    """⌈r·N⌉, at least one."""
    # Rounding first: (1 - 0.7) * 10 is 3.0000000000000004, and its ceiling would keep one sample too many.
    return max(1, math.ceil(round(keep_ratio * num_samples, 6)))


@dataclass(frozen=True, kw_only=True)
class KeepRatioSchedule(ABC):
    """The kept fraction r_t of every epoch t = 0 … T - 1.

    The last round(γ·T) epochs anneal: they train on all data (TED, Appendix A). The epochs before them follow
    :meth:`keep_ratio_at` over the progress u = t / T_p, T_p = T - round(γ·T).

    Args:
        prune_ratio: s in [0, 1), the fraction that the schedule works towards pruning.
        annealing: γ in [0, 1), the share of the epochs at the end that train on all data.
    """

    prune_ratio: float
    annealing: float = 0.0

    def __post_init__(self) -> None:
        fix = "it is the fraction to prune, so 0.7 trains on 30 % at the end. Pass a fraction, not a percentage."
        object.__setattr__(self, "prune_ratio", check_number("prune_ratio", self.prune_ratio, "[0, 1)", fix=fix))
        fix = "it is the share of epochs on all data at the end. The paper uses 0.125 for images, 0 for language."
        object.__setattr__(self, "annealing", check_number("annealing", self.annealing, "[0, 1)", fix=fix))

    @abstractmethod
    def keep_ratio_at(self, progress: float) -> float:
        """The kept fraction at progress u = t / T_p in [0, 1) of the pruning epochs."""

    def pruning_epochs(self, num_epochs: int) -> int:
        """T_p, the number of epochs before annealing starts."""
        return num_epochs - round(self.annealing * num_epochs)

    def is_pruning(self, epoch: int, num_epochs: int) -> bool:
        """Whether an epoch belongs to the pruning phase, not to annealing."""
        return epoch < self.pruning_epochs(num_epochs)

    def keep_ratio(self, epoch: int, num_epochs: int) -> float:
        """r_t of epoch t (0-based) in a run of T epochs; 1.0 while annealing and after the planned end."""
        if not self.is_pruning(epoch, num_epochs):
            return 1.0
        return self.keep_ratio_at(epoch / self.pruning_epochs(num_epochs))

    def num_kept(self, epoch: int, num_epochs: int, num_samples: int) -> int:
        """⌈r_t·N⌉, the number of samples that epoch t trains on (at least one)."""
        return num_kept(self.keep_ratio(epoch, num_epochs), num_samples)

    def planned_save_ratio(self, num_samples: int, num_epochs: int) -> float:
        """1 - (samples forwarded) / (N·T), known before the run (TED, eq. 24)."""
        kept = sum(self.num_kept(epoch, num_epochs, num_samples) for epoch in range(num_epochs))
        return 1 - kept / (num_samples * num_epochs)


@dataclass(frozen=True, kw_only=True)
class RollerCoasterSchedule(KeepRatioSchedule):
    """r_t = exp{(t / T_p)^β · log(1 - s)}: fast at first, slow later (TED, eq. 21); r_0 = 1.

    Args:
        prune_ratio: s in [0, 1).
        annealing: γ in [0, 1).
        beta: β > 0; the paper uses 0.2 to 0.3, and a smaller one prunes earlier.
    """

    beta: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "it must be positive, the shape of the roller-coaster; the paper uses 0.2 to 0.3."
        object.__setattr__(self, "beta", check_number("beta", self.beta, "(0, inf)", fix=fix))

    def keep_ratio_at(self, progress: float) -> float:
        """(TED, eq. 21)."""
        return math.exp(progress**self.beta * math.log(1 - self.prune_ratio))


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule(KeepRatioSchedule):
    """r_t = 1 - s from the first epoch on ("Fix" in TED, Fig. 7)."""

    def keep_ratio_at(self, progress: float) -> float:
        """1 - s."""
        del progress
        return 1 - self.prune_ratio


@dataclass(frozen=True, kw_only=True)
class LinearSchedule(KeepRatioSchedule):
    """r_t = 1 - s·t / T_p ("Linear" in TED, Fig. 7)."""

    def keep_ratio_at(self, progress: float) -> float:
        """1 - s·u."""
        return 1 - self.prune_ratio * progress


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(KeepRatioSchedule):
    """r_t = 1 - s·(1 - cos(π·t / T_p)) / 2 ("Cos" in TED, Fig. 7)."""

    def keep_ratio_at(self, progress: float) -> float:
        """1 - s·(1 - cos πu) / 2."""
        return 1 - self.prune_ratio * (1 - math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, type[KeepRatioSchedule]] = {
    "roller-coaster": RollerCoasterSchedule,
    "constant": ConstantSchedule,
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
}


def make_schedule(name: str, *, prune_ratio: float, annealing: float, beta: float) -> KeepRatioSchedule:
    """The schedule of that name; ``beta`` shapes the roller-coaster alone.

    Raises:
        ValueError: for an unknown name, or values out of range.
    """
    check_choice("schedule", name, SCHEDULES)
    if name == "roller-coaster":
        return RollerCoasterSchedule(prune_ratio=prune_ratio, annealing=annealing, beta=beta)
    return SCHEDULES[name](prune_ratio=prune_ratio, annealing=annealing)
