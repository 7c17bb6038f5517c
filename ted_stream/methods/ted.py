"""TED: train on the samples of the largest internal generalization distance."""

from dataclasses import dataclass

from ted_stream.methods.choices import choose_by
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import CorrectedMethod
from ted_stream.pruning import ExponentialMean, Owned, SampledScores
from ted_stream.pruning.measures import SITES, Loss, MaskGradient, Measure
from ted_stream.pruning.settings import check_choice, check_number

__all__ = ["TED"]


@dataclass(frozen=True, kw_only=True)
class TED(CorrectedMethod):
    """Train on the samples of the largest internal generalization distance (Xiao, Li and Nie, 2024).

    Mask gradient × running mean × highest scores × roller-coaster × 1 / r_t.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``, and
            :class:`CorrectedMethod` for ``loss_correction``.
        site: where the mask sits: ``input``, ``features`` (default) or ``output`` (see :class:`MaskGradient`).
        alpha: α in [0, 1), the weight of the past in the running score (eq. 19).
        relative: compare measurements of different epochs relative to the mean importance of their time.
        choice: ``highest`` keeps the highest scores (eq. 20); ``lowest`` the lowest ("TED-reverse", Fig. 8);
            ``sampled`` draws without replacement, in proportion to score^(1 / temperature).
        temperature: of ``sampled``, 1.0 by default.
        floor: of ``sampled``: this share of the mean score is added to every score, so that none is drawn hardly ever.
        importance: ``mask_gradient``, or ``loss`` for the paper's ablation "TED base on Loss" (Table 6).

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    site: str | None = None
    alpha: float = 0.9
    relative: bool = False
    choice: str = "highest"
    temperature: float | None = None
    floor: float = 0.0
    importance: str = "mask_gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put("alpha", self.running().alpha)
        check_choice("choice", self.choice, ("highest", "lowest", "sampled"))
        check_choice("importance", self.importance, ("mask_gradient", "loss"))
        self._put("floor", check_number("floor", self.floor, "[0, inf)", fix="it is a share of the mean score."))
        if self.temperature is not None:
            self._put("temperature", SampledScores(temperature=self.temperature).temperature)
        if self.site is not None:
            check_choice("site", self.site, SITES)
            if self.importance == "loss":
                self._warn_of("site", "importance='loss' has no mask")
        if self.choice != "sampled":
            for name in ("temperature", "floor"):
                if getattr(self, name):
                    self._warn_of(name, f"choice={self.choice!r} draws nothing")

    def measure(self) -> Measure:
        """(eqs. 12 and 18)."""
        return Loss() if self.importance == "loss" else MaskGradient("features" if self.site is None else self.site)

    def running(self) -> ExponentialMean:
        """(eq. 19)."""
        return ExponentialMean(alpha=self.alpha, relative=self.relative)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """(eq. 20), or a draw."""
        del epoch
        assert k is not None
        temperature = 1.0 if self.temperature is None else self.temperature
        return choose_by(owned, k, self.choice, temperature=temperature, floor=self.floor)
