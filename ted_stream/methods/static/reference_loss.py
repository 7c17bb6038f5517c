"""Reference loss: the samples that a given model finds the hardest, or the easiest."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.measured import finite_scores
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod
from ted_stream.pruning.batches import IGNORE_INDEX
from ted_stream.pruning.measures import Loss
from ted_stream.pruning.settings import check_choice

__all__ = ["ReferenceLoss"]


@dataclass(frozen=True, kw_only=True)
class ReferenceLoss(StaticMethod):
    """The loss of the sample under the model as it stands, perhaps a pretrained one; the largest are kept.

    For language models the mean over the sample's own target tokens. A sample without targets has no loss: its score
    is NaN, and it is left out.

    Args:
        keep: ``highest`` keeps the largest losses; ``lowest`` turns the score round, and keeps the smallest.

    Raises:
        ValueError: for another word, at construction.
    """

    keep: str = "highest"

    def __post_init__(self) -> None:
        check_choice("keep", self.keep, ("highest", "lowest"))

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``loss``, (B,), and ``has_targets``, (B,) 1 or 0."""
        del before, epoch
        microbatch = scored.microbatch
        counted = microbatch.predictions(needs_targets=True).targets != IGNORE_INDEX
        has_targets = counted.view(microbatch.size, -1).any(1)
        return {"loss": Loss().values(microbatch).float(), "has_targets": has_targets.float()}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """The losses, or their negatives."""
        del keep, seed
        losses = finite_scores(recorded.columns["loss"], self)
        scores = losses if self.keep == "highest" else -losses
        without = recorded.columns["has_targets"][:] == 0
        if not without.any():
            return Scored(scores=scores)
        note = f"{without.sum():,} without targets, and so without a loss"
        return Scored(scores=np.where(without, np.float32(np.nan), scores), left_out=without, note=note)
