"""DP, dataset pruning: leave out the samples whose influences on the model sum to almost nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.influence import Influences, refuse_too_large
from ted_stream.methods.static.last_layer import FEATURES, LastLayer
from ted_stream.methods.static.last_layer_method import LastLayerMethod
from ted_stream.methods.static.picks import LOG_PROBABILITIES, needed_count, order_scores, ranks_of
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch
from ted_stream.pruning.settings import check_number, check_whole

__all__ = ["DP"]


@dataclass(frozen=True, kw_only=True)
class DP(LastLayerMethod):
    """Leave out the set whose summed influence on the last layer is small (Dataset Pruning, Yang et al., 2023).

    The influence s_i = (H + λ I)⁻¹ g_i / N is how the trained last layer would change without sample i, H the Hessian
    of the mean loss there. Of their problem with a given number m to leave out, min ‖Σ s_i‖₂ over sets of m,
    this is a greedy solution: one after the other, the sample is left out with which the norm of the sum stays
    smallest. The order does not depend on m, so one scoring serves every pruning ratio.

    Args:
        features: reduce features to so many by a seeded random projection before all else: H has (C · (D + 1))²
            entries, and is refused above 2 GiB. ``None``: all features.
        damping: λ above 0, as a share of H's mean eigenvalue.
        pool: samples that are compared at a time, from a queue in random order. When a quarter of them is left out, the
            others go back to its end. Where no fewer than N it is exactly greedy, and holds all influences.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    needs_count: ClassVar[bool] = False

    features: int | None = None
    damping: float = 0.01
    pool: int = 1024

    def __post_init__(self) -> None:
        fix = "it is a share of the mean eigenvalue, added to all of them, since the smallest is 0."
        object.__setattr__(self, "damping", check_number("damping", self.damping, "(0, inf)", fix=fix))
        fix = "the number of samples that are compared at every step."
        object.__setattr__(self, "pool", check_whole("pool", self.pool, fix=fix))
        check_number("pool", self.pool, "[1, inf)", fix=fix)
        if self.features is not None:
            fix = "the number that features are reduced to; None takes them as they are."
            object.__setattr__(self, "features", check_whole("features", self.features, fix=fix))
            check_number("features", self.features, "[1, inf)", fix=fix)

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """-1 for the first that is left out, rising to below 0 for the last; 0 for what is kept.

        Raises:
            ValueError: if the Hessian would be too large.
        """
        size = len(recorded)
        leave = size if keep is None else size - needed_count("DP", keep, size)
        layer, queue = self._layer(recorded, seed), ranks_of(size, seed=seed).argsort()
        influences = Influences(layer, self.damping)
        total, left = np.zeros(layer.shape).ravel(), np.empty(0, np.int64)
        while len(left) < leave:
            pool, queue = queue[: self.pool], queue[self.pool :]
            vectors = influences.of(pool)
            count = max(1, self.pool // 4) if len(queue) else len(pool)
            chosen = _greedy(vectors, total, min(count, leave - len(left)))
            total += vectors[chosen].sum(0)
            left = np.concatenate([left, pool[chosen]])
            queue = np.concatenate([queue, np.delete(pool, chosen)])
        return Scored(scores=0 - order_scores(left, size))

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """As :class:`LastLayerMethod`; refused here already where the Hessian would be too large."""
        written = super().of_batch(scored, before, epoch)
        width = written[FEATURES].shape[1]
        has_bias = scored.microbatch.has_bias
        inputs = (width if self.features is None else min(width, self.features)) + has_bias
        refuse_too_large(written[LOG_PROBABILITIES].shape[1], inputs, has_bias=has_bias)
        return written

    def _layer(self, recorded: Recorded, seed: int) -> LastLayer:
        layer = LastLayer.of(recorded)
        width = layer.features.shape[1]
        if self.features is not None and self.features < width:
            projection = np.random.default_rng(seed % 2**64).standard_normal((width, self.features))
            layer = replace(layer, projection=projection / np.sqrt(self.features))
        refuse_too_large(*layer.shape, has_bias=layer.has_bias)
        return layer


def _greedy(vectors: NDArray[np.float64], total: NDArray[np.float64], count: int) -> list[int]:
    """Places of the vectors that are added one by one so that the norm of the total stays smallest."""
    products = vectors @ vectors.T
    costs = products.diagonal() + 2 * (vectors @ total)  # by how much each would raise the square of the norm
    chosen: list[int] = []
    for _ in range(count):
        place = int(costs.astype(np.float32).argmin())  # rounded, so that equal samples tie
        chosen.append(place)
        costs += 2 * products[place]
        costs[place] = np.inf
    return chosen
