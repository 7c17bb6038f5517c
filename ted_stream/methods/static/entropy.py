"""Entropy: the samples of the least certain predictions."""

from dataclasses import dataclass

from ted_stream.methods.static.measured import MeasuredScore
from ted_stream.pruning.measures import Entropy as EntropyMeasure

__all__ = ["Entropy"]


@dataclass(frozen=True, kw_only=True)
class Entropy(MeasuredScore):
    """−Σ p log p of the prediction; the largest are kept (Coleman et al. 2020).

    Needs no labels. For language models the mean over the sample's own target tokens.
    """

    def measure(self) -> EntropyMeasure:
        """−Σ p log p, in nats."""
        return EntropyMeasure()
