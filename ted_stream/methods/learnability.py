"""Learnability: train on what can still be learnt, by the loss beyond that of a reference model."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.export.scores import read_scores
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned
from ted_stream.pruning.measures import Loss, Measure
from ted_stream.pruning.settings import check_choice, check_number
from ted_stream.skip_list import DatasetLayout

__all__ = ["Learnability"]

_LAST = -1e38  # below all differences of losses


@dataclass(frozen=True, kw_only=True)
class Learnability(ScheduledMethod):
    """Keep the samples of the largest running loss less reference loss (RHO-LOSS: Mindermann et al., 2022).

    The reference loss of a sample comes from a model that has not seen it; a high one marks what cannot be learnt, such
    as a wrong label. ``ted-stream score CONFIG method=reference`` writes it once, for every later run on the dataset.
    A sample without a reference loss ranks last, once it was measured: those of a holdout are what the reference was
    trained on.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        reference: the scores file with the reference losses, a local path or a URI.
        alpha: α in [0, 1), the weight of the past in the running loss.
        choice: ``highest``, or ``sampled``: a draw without replacement in proportion to exp(difference / temperature).
        temperature: of ``sampled``, in units of the loss.

    Raises:
        ValueError: for a value out of range, at construction; before the run, if the reference losses are those of
            another dataset (of other shards, by their names, sizes and numbers of samples), or no such losses.
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
        found = read_scores(self.reference, layout)
        method, losses = found.provenance.get("method", ""), found.scores
        if not method.lower().startswith("reference"):
            raise ValueError(
                f"{self.reference} holds scores of {method!r}, not reference losses. Give what `ted-stream score … "
                "method=reference` writes; losses of your own are written with the provenance {'method': 'reference'}."
            )
        missing = np.count_nonzero(np.isnan(losses))
        if missing:
            warnings.warn(
                f"{missing} of {len(losses)} samples have no reference loss in {self.reference}: they rank last.",
                UserWarning,
                stacklevel=2,
            )
        return {"reference": losses}

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """By the differences."""
        del epoch
        assert k is not None
        keys = (owned.scores - owned.given["reference"]).astype(np.float64)
        if self.choice == "sampled":
            keys = keys / self.temperature + owned.gumbel()
        keys = np.where(np.isnan(owned.given["reference"]), _LAST * (2 + owned.uniform()), keys)
        return Chosen(owned.top_k(np.where(np.isnan(owned.scores), np.inf, keys), k))
