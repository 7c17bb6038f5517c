"""RCAP: shares of the classes by their loss, and draws by loss within each."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ted_stream.methods.choices import class_counts, clipped
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.settings import check_number

__all__ = ["RCAP"]


@dataclass(frozen=True, kw_only=True)
class RCAP(ScheduledMethod):
    """Class c gets a share of the kept in proportion to √(L_c·n_c / N) (Hassan, Khare and Paik, UAI 2025).

    A sample's score is its latest loss, clipped at ln C, the loss of a guess among C classes. L_c is the mean of these
    in class c, n_c its samples; no class gets more than it has, and the rest is shared again. Within a class samples
    are drawn without replacement with probability ∝ exp(loss / β). Made for long tails and the worst class.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` (of the schedule) and
            ``annealing``.
        temperature: β above zero, of the draw within a class; small ones keep the highest losses.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    needs_labels: ClassVar[bool] = True

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "it divides the losses of the draw within a class."
        self._put("temperature", check_number("temperature", self.temperature, "(0, inf)", fix=fix))

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> ExponentialMean:
        """The latest measurement."""
        return ExponentialMean(alpha=0.0)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """Shares of the classes first, then a draw in each."""
        del epoch
        assert k is not None
        losses = clipped(owned, at_chance=True, at_quantile=None)
        counts = class_counts(owned, k, "by_loss", losses)
        keys = np.where(np.isnan(losses), np.inf, losses / self.temperature + owned.gumbel())
        return Chosen(owned.top_k_by_class(keys, counts))
