"""Uniform: a fixed random subset, the baseline of every static method."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod
from ted_stream.pruning.hashing import uniform

__all__ = ["Uniform"]


@dataclass(frozen=True, kw_only=True)
class Uniform(StaticMethod):
    """A variate in (0, 1) for every sample, from a hash of the seed and its id.

    Attributes:
        needs_surrogate: that nothing of a surrogate enters the scores, so that none need be trained.
    """

    needs_surrogate: ClassVar[bool] = False

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``none``, (B,) zeros: there must be something to count samples by."""
        del before, epoch
        return {"none": torch.zeros(scored.microbatch.size)}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """Hashes."""
        del keep
        return Scored(scores=uniform(np.arange(len(recorded)), seed=seed).astype(np.float32))
