"""Which samples of a run are meant."""

import json
import math
from dataclasses import asdict, dataclass

__all__ = ["Selection"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The samples that an epoch kept, those that several kept, or those of some scores; at most one is given.

    Without any, those that the last pruned epoch kept.

    Args:
        epoch: those that this epoch kept; 0-based.
        min_epochs: those that at least so many of the epochs so far kept.
        threshold: those whose running score is at least this; with ``lowest`` at most.
        ratio: this share of all samples, in (0, 1]: those with the highest running scores, or with ``lowest`` the
            lowest; of equal scores those with the lowest ids.
        lowest: see there.

    Raises:
        ValueError: for a value out of its range, several criteria, or ``lowest`` without scores.
    """

    epoch: int | None = None
    min_epochs: int | None = None
    threshold: float | None = None
    ratio: float | None = None
    lowest: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("epoch", "min_epochs", "threshold", "ratio") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; give one of them: each alone says which samples.")
        if self.epoch is not None and self.epoch < 0:
            raise ValueError(f"epoch is {self.epoch}; epochs count from 0.")
        if self.min_epochs is not None and self.min_epochs < 1:
            raise ValueError(f"min_epochs is {self.min_epochs}; give at least 1: every sample is kept in 0 or more.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold}; give a finite score.")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}, outside (0, 1]: it is the share of the samples that is taken.")
        if self.lowest and not self.by_score:
            raise ValueError("lowest has no effect without threshold or ratio; give one, or leave it out.")

    @property
    def by_score(self) -> bool:
        """Whether running scores decide."""
        return self.threshold is not None or self.ratio is not None

    @property
    def of_one_epoch(self) -> bool:
        """Whether one epoch's skip-list decides."""
        return self.min_epochs is None and not self.by_score

    def __str__(self) -> str:
        if self.min_epochs is not None:
            return f"kept in at least {self.min_epochs} epoch{'s' * (self.min_epochs > 1)}"
        if self.threshold is not None:
            return f"with scores of at {'most' if self.lowest else 'least'} {self.threshold:g}"
        if self.ratio is not None:
            return f"with the {'lowest' if self.lowest else 'highest'} {self.ratio:.4g} of scores"
        return "kept in the last pruned epoch" if self.epoch is None else f"kept in epoch {self.epoch}"

    def to_json(self) -> str:
        """Its criterion by name, as manifests keep it."""
        return json.dumps(
            {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        )

    @staticmethod
    def from_json(text: str) -> "Selection":
        """The selection of :meth:`to_json`.

        Raises:
            ValueError: if it is none.
        """
        try:
            return Selection(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"{text} is no selection: {error}") from error
