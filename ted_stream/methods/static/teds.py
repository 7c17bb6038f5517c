"""TEDS: TED's scores of a training on all samples, for a fixed subset."""

from dataclasses import dataclass

from ted_stream.methods.static.trajectory import TrajectoryScore
from ted_stream.pruning import ExponentialMean
from ted_stream.pruning.measures import SITES, MaskGradient
from ted_stream.pruning.settings import check_choice

__all__ = ["TEDS"]


@dataclass(frozen=True, kw_only=True)
class TEDS(TrajectoryScore):
    """TED's running scores without pruning; the largest are kept (Xiao, Li and Nie 2024, the static variant TEDS).

    Args:
        site: where the mask sits: ``input``, ``features`` or ``output`` (see :class:`MaskGradient`).
        alpha: α in [0, 1), the weight of the past in the running score (eq. 19).
        relative: compare measurements of different epochs relative to the mean importance of their time.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    site: str = "features"
    alpha: float = 0.9
    relative: bool = False

    def __post_init__(self) -> None:
        check_choice("site", self.site, SITES)
        object.__setattr__(self, "alpha", self.running().alpha)

    def measure(self) -> MaskGradient:
        """(eqs. 12 and 18)."""
        return MaskGradient(self.site)

    def running(self) -> ExponentialMean:
        """(eq. 19)."""
        return ExponentialMean(alpha=self.alpha, relative=self.relative)
