"""A method put together from words: measure × running score × choice × shares of classes × weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.choices import (
    WithCredit,
    choose_by,
    choose_weighted,
    class_counts,
    clipped,
    inverse_probabilities,
    sizes_of,
)
from ted_stream.methods.composition import checked_words
from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import ScheduledMethod
from ted_stream.pruning import ExponentialMean, Owned, Running
from ted_stream.pruning.measures import Measure, make_measure
from ted_stream.pruning.running import Deviation, Uncertainty

__all__ = ["Composed"]


@dataclass(frozen=True, kw_only=True)
class Composed(ScheduledMethod):
    """A method of one's own without code: each part by its name.

    Args:
        prune_ratio: s in [0, 1). See :class:`ScheduledMethod` for ``schedule``, ``beta`` and ``annealing``.
        importance: what a step tells of each sample, one of :data:`MEASURES`.
        site: of ``mask_gradient``: ``input``, ``features`` (default) or ``output``.
        norm: of ``mask_gradient``: 1 or 2, of one mask entry per feature; ``None`` for one per sample.
        score: what is ranked: the running ``mean`` of the measurements; their ``deviation`` about it; or, of a
            probability, ``uncertainty``, deviation·(1 − mean).
        alpha: α in [0, 1), the weight of the past in it; 0 takes the latest measurement.
        relative: divide measurements by the mean importance of their time, so that those of different epochs compare.
        clip_chance: take scores above ln C as ln C, the loss of a guess among C classes. Of ``loss`` alone.
        clip_quantile: take scores above this quantile, in (0, 1), of all as that.
        choice: keep the ``highest`` or the ``lowest`` scores, a draw ``sampled`` in proportion to them, or ``even``:
            turns in proportion to them, without chance.
        temperature: of ``sampled``: draw in proportion to score^(1 / temperature), 1.0 by default.
        floor: of ``sampled`` and ``even``: this share of the mean score is added to every score.
        class_shares: how many of each class: ``as_they_are``, ``sqrt``, ``equal`` (see :class:`RandomPruning`), or, of
            ``loss``, ``by_loss`` (see :class:`RCAP`); ``None`` leaves classes to the scores.
        weights: what multiplies losses: ``none``; ``keep_ratio``, 1 / r_t for all (TED, eq. 23); or, of choices that
            know with which probability they keep a sample, ``inverse_probability``, with mean 1.

    Raises:
        ValueError: for a value out of range, or words that make no sense together, at construction.
        TypeError: for a value of another type.
    """

    importance: str = "loss"
    site: str | None = None
    norm: int | None = None
    score: str = "mean"
    alpha: float = 0.9
    relative: bool = False
    clip_chance: bool = False
    clip_quantile: float | None = None
    choice: str = "sampled"
    temperature: float | None = None
    floor: float = 0.0
    class_shares: str | None = None
    weights: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in checked_words(self).items():
            self._put(name, value)
        self.measure()  # refuses a wrong site or norm

    @property
    def needs_labels(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With shares of classes, and to know their number."""
        return self.class_shares is not None or self.clip_chance

    @property
    def weighs_samples(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With inverse probabilities."""
        return self.weights == "inverse_probability"

    def measure(self) -> Measure:
        """The importance."""
        given = {"site": self.site, "norm": self.norm}
        return make_measure(self.importance, **{name: value for name, value in given.items() if value is not None})

    def running(self) -> Running:
        """The score, and the credit of turns."""
        running: Running = ExponentialMean(alpha=self.alpha, relative=self.relative)
        if self.score != "mean":
            running = Deviation(alpha=self.alpha) if self.score == "deviation" else Uncertainty(alpha=self.alpha)
        return WithCredit(running) if self.choice == "even" else running

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """By the clipped scores, in the shares of the classes."""
        del epoch
        assert k is not None
        scores = clipped(owned, at_chance=self.clip_chance, at_quantile=self.clip_quantile)
        counts = None if self.class_shares is None else class_counts(owned, k, self.class_shares, scores)
        if self.weights == "inverse_probability" and self.choice == "sampled":
            return choose_weighted(owned, k, sizes_of(owned, scores, self.floor), counts=counts)
        temperature = 1.0 if self.temperature is None else self.temperature
        return choose_by(owned, k, self.choice, scores=scores, counts=counts, temperature=temperature, floor=self.floor)

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> float | NDArray[np.float32]:
        """By the word."""
        if self.weights == "inverse_probability":
            return inverse_probabilities(owned, chosen)
        return 1 / ratio if self.weights == "keep_ratio" else 1.0
