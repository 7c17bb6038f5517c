"""Margin: the samples between the two likeliest classes."""

from dataclasses import dataclass
from typing import ClassVar

from ted_stream.methods.static.measured import MeasuredScore
from ted_stream.pruning.measures import Margin as MarginMeasure

__all__ = ["Margin"]


@dataclass(frozen=True, kw_only=True)
class Margin(MeasuredScore):
    """p₁ − p₂ of the two likeliest classes; the smallest are kept (DeepCore: Guo, Zhao and Bai 2022).

    The score is its negative. Needs no labels. For language models the mean over the sample's own target tokens.
    """

    keeps_smallest: ClassVar[bool] = True

    def measure(self) -> MarginMeasure:
        """p₁ − p₂."""
        return MarginMeasure()
