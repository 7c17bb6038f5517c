"""A fresh random subset every epoch: the baseline at an equal saving."""

from dataclasses import dataclass

import numpy as np

from ted_stream.methods.choices import CLASS_SHARES, WithCredit, choose_evenly, choose_uniformly, class_counts
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import CorrectedMethod
from ted_stream.pruning import ExponentialMean, Owned, Running
from ted_stream.pruning.settings import check_choice

__all__ = ["RandomPruning"]


@dataclass(frozen=True, kw_only=True)
class RandomPruning(CorrectedMethod):
    """A uniform sample every epoch, under any keep-ratio schedule (RS2: Okanovic et al., 2023).

    With ``schedule='constant'`` and no annealing it is the "Random*" of the literature.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``, and
            :class:`CorrectedMethod` for ``loss_correction``, which is off here: the mean loss of a uniform sample is
            that of all samples already.
        coverage: ``fresh`` draws anew in every epoch; ``even`` takes turns, so that no sample is visited a second time
            (within one visit) before all were.
        class_shares: ``as_they_are``, ``sqrt`` or ``equal``: how many samples of every class an epoch has, in
            proportion to the n_c that there are, to √n_c, or as many of each, as far as there are; ``None`` leaves
            classes to chance. Asks for class targets; samples whose class was not seen yet count as one more class,
            with their part of all samples.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    loss_correction: bool = False
    coverage: str = "fresh"
    class_shares: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("coverage", self.coverage, ("fresh", "even"))
        if self.class_shares is not None:
            check_choice("class_shares", self.class_shares, [share for share in CLASS_SHARES if share != "by_loss"])

    @property
    def needs_labels(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With shares of classes."""
        return self.class_shares is not None

    def running(self) -> Running:
        """Nothing, or whose turn it is."""
        return WithCredit(ExponentialMean()) if self.coverage == "even" else ExponentialMean()

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """The k highest variates of (seed, epoch, id), or the k richest."""
        del epoch
        assert k is not None
        counts = None if self.class_shares is None else class_counts(owned, k, self.class_shares)
        if self.coverage == "fresh":
            return choose_uniformly(owned, k, counts=counts)
        return choose_evenly(owned, k, np.ones(len(owned)), counts=counts)
