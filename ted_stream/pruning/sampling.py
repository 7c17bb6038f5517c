"""Drawing exactly k samples with given probabilities: order sampling."""

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.owned import Owned

__all__ = ["inclusion_probabilities", "pareto_keys"]


def inclusion_probabilities(sizes: NDArray[np.floating], k: int, owned: Owned) -> NDArray[np.float64]:
    """π in proportion to sizes, none above 1, that sum to k over all ranks; the same bits for every number of ranks.

    What would exceed 1 is set to 1, and the rest is shared among the others, until none exceeds it.

    Args:
        sizes: (n,) finite and above zero, of the samples that this rank owns.
        k: from 1 to the number of samples of all ranks.
        owned: for sums over all ranks.

    Returns:
        (n,) float64 in (0, 1].
    """
    certain = np.full(len(sizes), k == owned.num_samples)
    probabilities = np.ones(len(sizes))
    num_certain = owned.count(certain)
    while num_certain < owned.num_samples:
        others = owned.num_samples - num_certain
        scale = (k - num_certain) / (owned.mean(np.where(certain, np.nan, sizes)) * others)
        probabilities = np.where(certain, 1.0, sizes * scale)
        beyond = probabilities > 1
        if not owned.count(beyond):
            break
        certain |= beyond
        num_certain = owned.count(certain)
    return probabilities


def pareto_keys(probabilities: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.float32]:
    """Keys whose k largest are a sample of exactly k with inclusion probabilities π (Rosén, 1997: Pareto sampling).

    -log[U / (1 - U) · (1 - π) / π]. The probabilities are asymptotically exact, as Σ π (1 - π) grows.

    Args:
        probabilities: (n,) π in (0, 1] that sum to k over all ranks.
        draws: (n,) U in (0, 1), independent and uniform.

    Returns:
        (n,) float32; infinite where π = 1.
    """
    with np.errstate(divide="ignore"):
        odds = np.log(draws) - np.log1p(-draws) + np.log1p(-probabilities) - np.log(probabilities)
    return -odds.astype(np.float32)
