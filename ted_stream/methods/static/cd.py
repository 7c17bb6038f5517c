"""CD, contextual diversity: a set of samples whose predictions lie near all others'."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.picks import (
    LOG_PROBABILITIES,
    check_finite,
    class_log_probabilities,
    needed_count,
    order_scores,
    ranks_of,
)
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod

__all__ = ["CD"]

_BLOCK = 1 << 22  # numbers that are compared at a time


@dataclass(frozen=True, kw_only=True)
class CD(StaticMethod):
    """Keep a set whose predictions are near to all others' (contextual diversity, Agarwal et al., 2020).

    k-centre greedy: the first sample is drawn, each next is the one whose prediction is farthest from the nearest
    chosen one. The distance of two predictions is their symmetric divergence KL(p‖q) + KL(q‖p) = Σ_c (p_c - q_c)
    (log p_c - log q_c); a probability below 1.2e-38 counts as that. A smaller set is the beginning of a larger one.
    """

    needs_count: ClassVar[bool] = True

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``log_probabilities`` (B, C).

        Raises:
            ValueError: if there is not one prediction per sample.
        """
        del before, epoch
        return {LOG_PROBABILITIES: class_log_probabilities(scored)}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """1 for the first pick, falling to above 0 for the last; 0 for what is not kept."""
        size = len(recorded)
        keep = needed_count("CD", keep, size)
        check_finite(recorded)
        logs = recorded.columns[LOG_PROBABILITIES]
        ranks = ranks_of(size, seed=seed)
        nearest = np.full(size, np.inf, np.float32)
        picks = np.empty(keep, np.int64)
        for place in range(keep):
            farthest = np.flatnonzero(nearest == nearest.max())
            picks[place] = centre = farthest[ranks[farthest].argmin()]
            np.minimum(nearest, _divergences(logs, centre), out=nearest)
            nearest[picks[: place + 1]] = -np.inf
        return Scored(scores=order_scores(picks, size))


def _divergences(logs: NDArray[np.float32], centre: int) -> NDArray[np.float32]:
    """(N,) symmetric divergences from one sample. No term is below zero, so none cancels another."""
    found = np.empty(len(logs), np.float32)
    log_q = np.asarray(logs[centre])
    q = np.exp(log_q)
    rows = max(1, _BLOCK // logs.shape[1])
    for first in range(0, len(logs), rows):
        log_p = logs[first : first + rows]
        found[first : first + rows] = np.einsum("ic,ic->i", np.exp(log_p) - q, log_p - log_q)
    return found
