"""GLISTER: the samples whose gradients lower the loss of a validation share, step by step."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ted_stream.methods.static.last_layer import LastLayer
from ted_stream.methods.static.last_layer_method import LastLayerMethod
from ted_stream.methods.static.picks import needed_count, order_scores, ranks_of
from ted_stream.methods.static.static_method import Recorded, Scored
from ted_stream.pruning.settings import check_number, check_whole

__all__ = ["GLISTER"]


@dataclass(frozen=True, kw_only=True)
class GLISTER(LastLayerMethod):
    """Keep what lowers the loss of a validation share most, as a gradient step on it would (Killamsetty et al., 2021).

    Greedy: the gain of a sample is g_i · g_val(θ_S), g_i its gradient at the trained head θ, and g_val the mean
    gradient of the validation samples at θ_S = θ - (η / k) Σ_{j ∈ S} g_j, the head after a step on what is chosen so
    far (their first-order Taylor approximation), k how many will be kept. Between picks g_val is computed
    anew, so that what is learnt from the chosen is not asked for again.

    Validation samples are training samples, a share drawn by a seeded hash of their ids, and may be kept like others:
    the share says where the loss is looked at, and leaving it out would make most of the data what cannot be kept.

    Args:
        validation: share of the samples in (0, 1] whose loss is to fall.
        learning_rate: η, of one step on the mean loss of the kept; 0 leaves g_val what it is.
        per_step: samples that are picked between two computations of g_val; ``None``: a hundredth of the kept.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    needs_count: ClassVar[bool] = True

    validation: float = 0.1
    learning_rate: float = 1.0
    per_step: int | None = None

    def __post_init__(self) -> None:
        fix = "it is the share of the samples whose loss the kept ones are to lower."
        object.__setattr__(self, "validation", check_number("validation", self.validation, "(0, 1]", fix=fix))
        fix = "it is that of the step which is imagined on the chosen samples."
        object.__setattr__(
            self, "learning_rate", check_number("learning_rate", self.learning_rate, "[0, inf)", fix=fix)
        )
        if self.per_step is not None:
            fix = "so many samples are picked by one validation gradient; None picks a hundredth of the kept."
            object.__setattr__(self, "per_step", check_whole("per_step", self.per_step, fix=fix))
            check_number("per_step", self.per_step, "[1, inf)", fix=fix)

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """1 for the first pick, falling to above 0 for the last; 0 for what is not kept."""
        size = len(recorded)
        keep = needed_count("GLISTER", keep, size)
        layer, ranks = LastLayer.of(recorded), ranks_of(size, seed=seed)
        validation = np.flatnonzero(ranks_of(size, seed=seed, epoch=1) < max(1, round(self.validation * size)))
        per_step = -(-keep // 100) if self.per_step is None else self.per_step
        picks, change = np.empty(0, np.int64), np.zeros(layer.shape)
        while len(picks) < keep:
            gradient = layer.gradient_sum(validation, change) / len(validation)
            gains = layer.products(gradient).astype(np.float32)  # rounded, so that equal samples tie
            gains[picks] = -np.inf
            best = np.lexsort((ranks, -gains))[: min(per_step, keep - len(picks))]
            change -= self.learning_rate / keep * layer.gradient_sum(np.sort(best))
            picks = np.concatenate([picks, best])
        return Scored(scores=order_scores(picks, size))
