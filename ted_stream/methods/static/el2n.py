"""EL2N: the samples whose predictions are farthest from their labels."""

from dataclasses import dataclass
from typing import ClassVar

from ted_stream.methods.static.measured import MeasuredScore
from ted_stream.pruning.measures import ErrorNorm

__all__ = ["EL2N"]


@dataclass(frozen=True, kw_only=True)
class EL2N(MeasuredScore):
    """‖softmax(z) − y‖₂ early in training; the largest are kept (Paul, Ganguli and Dziugaite 2021).

    The paper averages over surrogates from several seeds. For language models the mean over the sample's own target
    tokens of each token's norm.

    Attributes:
        averages_runs: that the mean over surrogates is the method's score.
    """

    averages_runs: ClassVar[bool] = True

    def measure(self) -> ErrorNorm:
        """‖p − y‖₂."""
        return ErrorNorm()
