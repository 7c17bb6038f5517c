"""Learnability: train on what can still be learnt, by the loss beyond that of a reference model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.export.scores import read_scores
from ted_stream.methods.choices import choose_by
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.settings import check_choice, check_number
from ted_stream.skip_list import DatasetLayout

__all__ = ["Learnability"]


@dataclass(frozen=True, kw_only=True)
class Learnability(ScheduledMethod):
    """Keep the samples of the largest running loss less reference loss (RHO-LOSS: Mindermann et al., 2022).

    The reference loss of a sample comes from a model that has not seen it; a high one marks what cannot be learnt, such
    as a wrong label. ``ted-stream score CONFIG method=reference`` writes it once, for every later run on the dataset.
    A sample without a reference loss is kept, as one that was never measured.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        reference: the scores file with the reference losses, a local path or a URI.
        alpha: α in [0, 1), the weight of the past in the running loss.
        choice: ``highest``, or ``sampled``: a draw without replacement in proportion to exp(difference / temperature).
        temperature: of ``sampled``, in units of the loss.

    Raises:
        ValueError: for a value out of range, at construction; before the run, if the reference losses are those of
            another dataset.
        TypeError: for a value of another type.
    """

    reference: str
    alpha: float = 0.0
    choice: str = "highest"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.reference, str) or not self.reference.endswith(".parquet"):
            raise ValueError(
                f"reference is {self.reference!r}, but must be the path or URI of a file *.parquet of scores."
            )
        self._put("alpha", self.running().alpha)
        check_choice("choice", self.choice, ("highest", "sampled"))
        fix = "it divides the differences of losses that are drawn by."
        self._put("temperature", check_number("temperature", self.temperature, "(0, inf)", fix=fix))

    def measure(self) -> Measure:
        """The loss."""
        return Loss()

    def running(self) -> ExponentialMean:
        """Of the loss (TED, eq. 19)."""
        return ExponentialMean(alpha=self.alpha)

    def given(self, layout: DatasetLayout) -> Mapping[str, NDArray[np.float32]]:
        """The reference losses."""
        return {"reference": read_scores(self.reference, layout).scores}

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """By the differences."""
        del epoch
        assert k is not None
        differences = owned.scores - owned.given["reference"]
        if self.choice == "highest":
            return choose_by(owned, k, "highest", scores=differences)
        keys = np.where(np.isnan(differences), np.inf, differences / self.temperature + owned.gumbel())
        return Chosen(owned.top_k(keys, k))
