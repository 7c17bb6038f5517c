"""Static scores made of a whole training: methods that keep all samples, and whose last running scores are theirs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.method import Chosen, Method
from ted_stream.methods.static.static_method import Scored
from ted_stream.pruning import Owned

__all__ = ["TrajectoryScore"]


@dataclass(frozen=True, kw_only=True)
class TrajectoryScore(Method):
    """A dynamic method that prunes nothing: it measures every sample in every epoch, within the training step.

    A subclass says what is measured and how the measurements of a sample become its score (:meth:`running`); what is
    measured is of the augmented sample, and of the model in training mode, as the papers measure it.
    """

    def keep_ratio(self, epoch: int, num_epochs: int) -> float:
        """All."""
        del epoch, num_epochs
        return 1.0

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """All."""
        del epoch, k
        return Chosen(np.ones(len(owned), np.bool_))

    def static_scores(self, columns: Mapping[str, NDArray[np.float32]]) -> Scored:
        """The scores after the last epoch.

        Args:
            columns: (N,) each, what :meth:`running` remembers of all samples.

        Raises:
            ValueError: if a sample was measured too seldom to have a score.
        """
        scores = self.running().scores(columns)
        missing = np.count_nonzero(self.lacks_score(columns))
        if missing:
            raise ValueError(
                f"{missing} of {len(scores)} samples have no {type(self).__name__} score: they were measured too "
                "seldom. Train for as many epochs as the method asks for, with drop_last=False."
            )
        return Scored(scores=scores)

    def lacks_score(self, columns: Mapping[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
        """(N,) marks of the samples that were measured too seldom; the columns are as in :meth:`static_scores`."""
        return np.isnan(self.running().scores(columns))
