"""Reference losses: what a model loses on samples that it has not been trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.static import STATIC_METHODS, StaticMethod, TrajectoryScore
from ted_stream.methods.static.measured import MeasuredScore
from ted_stream.pruning.hashing import hash_ids
from ted_stream.pruning.measures import Loss
from ted_stream.pruning.settings import check_number, check_whole

__all__ = ["SCORERS", "Reference"]


@dataclass(frozen=True, kw_only=True)
class Reference(MeasuredScore):
    """The loss of each sample under a model that was not trained on it; the smallest are kept.

    Reference losses are what ``Learnability`` (RHO-LOSS: Mindermann et al., 2022) subtracts. The highest ones are
    likely wrong labels. The score is the loss itself, by the model's own loss function on the sample alone.

    Args:
        folds: K of at least 2. The samples are dealt into K parts by a seeded hash of their ids, and each part is
            scored by a model that was trained on the others. The default, with 2, where nothing else is given.
        holdout: share in (0, 1) of the samples, drawn by such a hash, that one model is trained on. It scores all
            others; those that it was trained on have no score.
        checkpoint: path or URI of a checkpoint of the loop, whose model scores all samples; nothing is trained.

    Raises:
        ValueError: for a value out of range, or more than one of the three, at construction.
        TypeError: for a value of another type.
    """

    folds: int | None = None
    holdout: float | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("folds", "holdout", "checkpoint") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, but each is another way to a reference; keep one.")
        if not given:
            object.__setattr__(self, "folds", 2)
        if self.folds is not None:
            fix = "each fold is scored by a model that was trained on the others."
            object.__setattr__(self, "folds", check_whole("folds", self.folds, fix=fix))
            check_number("folds", self.folds, "[2, inf)", fix=fix)
        if self.holdout is not None:
            fix = "it is the share of the samples that the reference is trained on."
            object.__setattr__(self, "holdout", check_number("holdout", self.holdout, "(0, 1)", fix=fix))
        if self.checkpoint is not None and not (isinstance(self.checkpoint, str) and self.checkpoint):
            raise ValueError(f"checkpoint is {self.checkpoint!r}, but must be the path of a checkpoint of the loop.")

    def measure(self) -> Loss:
        """ℓ."""
        return Loss()

    def trained_on(self, num_samples: int, *, seed: int) -> list[NDArray[np.bool_]]:
        """(N,) marks of the samples that each of the models is trained on; what it scores are the others.

        Raises:
            ValueError: if one of them would have no samples to train on, or to score.
        """
        self.check_size(num_samples)
        order = np.argsort(hash_ids(np.arange(num_samples), seed=seed))
        if self.holdout is not None:
            parts = [order[: round(self.holdout * num_samples)]]
        else:
            assert self.folds is not None, "a checkpoint is not trained"
            others = [order[at :: self.folds] for at in range(self.folds)]
            parts = [np.setdiff1d(order, other, assume_unique=True) for other in others]
        marks = []
        for part in parts:
            mark = np.zeros(num_samples, np.bool_)
            mark[part] = True
            marks.append(mark)
        return marks

    def check_size(self, num_samples: int) -> None:
        """Refuse a dataset of so many samples that a model would have none of to train on, or to score.

        Raises:
            ValueError: naming the bound.
        """
        if self.folds is not None and self.folds > num_samples:
            raise ValueError(
                f"folds is {self.folds}, but it must lie in [2, {num_samples}]: the dataset has {num_samples} samples, "
                "and each fold is scored by a model of its own; 2 to 10 are usual."
            )
        if self.holdout is not None and not 0 < (trained := round(self.holdout * num_samples)) < num_samples:
            raise ValueError(
                f"holdout={self.holdout} leaves a model with {trained} of {num_samples} samples to train on; it takes "
                f"at least one of them and one to score, so set holdout between {1 / num_samples:.2g} and "
                f"{1 - 1 / num_samples:.6g}."
            )


SCORERS: dict[str, type[StaticMethod] | type[TrajectoryScore]] = {**STATIC_METHODS, "reference": Reference}
"""All that a scoring run can be asked for, by name."""
