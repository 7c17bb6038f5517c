"""Static scores that one measure of the trained surrogate gives."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod
from ted_stream.pruning.measures import Measure

__all__ = ["MeasuredScore", "finite_scores"]


def finite_scores(values: NDArray[np.floating], method: StaticMethod) -> NDArray[np.float32]:
    """(N,) the values as float32 scores.

    Raises:
        ValueError: if one is infinite or NaN.
    """
    scores = np.asarray(values, np.float32)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise ValueError(
            f"{type(method).__name__} gives {len(wrong)} of {len(scores)} samples no finite score, the first, sample "
            f"{wrong[0]}, {scores[wrong[0]]}: the surrogate's outputs overflow or are NaN, as after a training that "
            "diverged. Train it at a lower learning rate, or in a wider precision."
        )
    return scores


@dataclass(frozen=True, kw_only=True)
class MeasuredScore(StaticMethod):
    """A static method whose score is what a measure gives in one pass, or its negative.

    Attributes:
        keeps_smallest: whether the smallest values are kept.
    """

    keeps_smallest: ClassVar[bool] = False

    @abstractmethod
    def measure(self) -> Measure:
        """What is measured; over several positions of a sample (tokens), the mean over its own targets."""

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``score``, (B,)."""
        del before, epoch
        values = self.measure().values(scored.microbatch)
        assert values is not None, "a measure with a mask needs a backward pass"
        return {"score": (-values if self.keeps_smallest else values).float()}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """The column."""
        del keep, seed
        return Scored(scores=finite_scores(recorded.columns["score"], self))
