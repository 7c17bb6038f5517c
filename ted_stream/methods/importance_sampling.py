"""Importance sampling: an unbiased epoch of exactly k samples."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.choices import choose_weighted, inverse_probabilities, sizes_of
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned
from ted_stream.pruning.measures import Measure, make_measure
from ted_stream.pruning.settings import check_choice, check_number

__all__ = ["ImportanceSampling"]

_IMPORTANCES = ("error_norm", "last_layer_gradient", "loss", "mask_gradient")


@dataclass(frozen=True, kw_only=True)
class ImportanceSampling(ScheduledMethod):
    """Draw k samples with probabilities π in proportion to their scores, and weigh their losses by 1 / π.

    π_i ∝ score_i + floor · mean score, none above 1, summing to k; drawn without replacement by Pareto sampling, and
    weighted by 1 / π_i divided by the mean of these weights. The expected gradient is that of all data, up to that
    normalisation. The scores of Katharopoulos and Fleuret (2018): the norm of the last layer's gradient. A sample that
    was never measured counts as the largest score; a loss below zero as zero.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        importance: ``last_layer_gradient``, ``error_norm``, ``loss`` or ``mask_gradient``.
        alpha: α in [0, 1), the weight of the past in the running score.
        floor: above 0, this share of the mean score is added to every score: it bounds the weights.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    weighs_samples: ClassVar[bool] = True

    importance: str = "last_layer_gradient"
    alpha: float = 0.9
    floor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("importance", self.importance, _IMPORTANCES)
        self._put("alpha", self.running().alpha)
        fix = "it is the share of the mean score that every sample has beside its own, and bounds the weights."
        self._put("floor", check_number("floor", self.floor, "(0, inf)", fix=fix))

    def measure(self) -> Measure:
        """The importance that was asked for."""
        return make_measure(self.importance)

    def running(self) -> ExponentialMean:
        """(TED, eq. 19)."""
        return ExponentialMean(alpha=self.alpha)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """A Pareto sample of exactly k."""
        del epoch
        assert k is not None
        return choose_weighted(owned, k, sizes_of(owned, owned.scores, self.floor))

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> NDArray[np.float32]:
        """1 / π, divided by its mean over the kept of all ranks."""
        del ratio
        return inverse_probabilities(owned, chosen)
