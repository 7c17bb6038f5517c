"""DynamicDUAL: draw samples by how uncertain and how unlearnt their own class still is."""

from dataclasses import dataclass

from ted_stream.methods.choices import choose_by, known_deviations
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import Owned
from ted_stream.pruning.measures import Measure, TrueProbability
from ted_stream.pruning.running import Uncertainty
from ted_stream.pruning.settings import check_choice, check_number

__all__ = ["DynamicDUAL"]


@dataclass(frozen=True, kw_only=True)
class DynamicDUAL(ScheduledMethod):
    """Draw in proportion to std(p)·(1 − mean(p)), p the probability of the true class (after DUAL: Cho et al., 2025).

    DUAL's score, with running means over all of a sample's measurements instead of windows of epochs, so that it serves
    while training. A sample that was measured once counts as the mean of the others, and without others all are alike.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        alpha: α in (0, 1), the weight of the past in both running means.
        choice: ``sampled``, or ``highest`` for the highest scores.
        floor: this share of the mean score is added to every score of a draw, so that none is drawn hardly ever.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    alpha: float = 0.7
    choice: str = "sampled"
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put("alpha", self.running().alpha)
        check_choice("choice", self.choice, ("sampled", "highest"))
        self._put("floor", check_number("floor", self.floor, "[0, inf)", fix="it is a share of the mean score."))
        if self.choice == "highest" and self.floor:
            self._warn_of("floor", "choice='highest' draws nothing")

    def measure(self) -> Measure:
        """The probability of the true class."""
        return TrueProbability()

    def running(self) -> Uncertainty:
        """Mean and variance."""
        return Uncertainty(alpha=self.alpha)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """A draw of k, or the k highest."""
        del epoch
        assert k is not None
        return choose_by(owned, k, self.choice, scores=known_deviations(owned), floor=self.floor)
