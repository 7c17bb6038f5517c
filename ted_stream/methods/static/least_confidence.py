"""Least Confidence: the samples whose likeliest class is the least likely."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.measured import finite_scores
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod

__all__ = ["LeastConfidence"]


def _doubts(logits: Tensor, targets: Tensor) -> Tensor:
    """(M,) 1 − max p, from logits (M, C)."""
    del targets
    p = logits.softmax(1)
    # As the sum of the others: 1 − p would be 0 for all that are sure, and their order lost.
    return p.scatter_(1, p.argmax(1, keepdim=True), 0.0).sum(1)


@dataclass(frozen=True, kw_only=True)
class LeastConfidence(StaticMethod):
    """1 − max p of the prediction; the largest are kept (Coleman et al. 2020).

    Needs no labels. For language models the mean over the sample's own target tokens.
    """

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``score``, (B,)."""
        del before, epoch
        return {"score": scored.microbatch.predictions(needs_targets=False).means(_doubts).float()}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """The column."""
        del keep, seed
        return Scored(scores=finite_scores(recorded.columns["score"], self))
