"""Drawing exactly k samples with given probabilities: order sampling."""

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.owned import Owned

__all__ = ["inclusion_probabilities", "pareto_keys", "proportional"]


def inclusion_probabilities(
    sizes: NDArray[np.floating], counts: NDArray[np.int64], owned: Owned, *, groups: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """π in proportion to sizes, none above 1, that sum to a count in each group; the same for every number of ranks.

    What would exceed 1 is set to 1, and the rest is shared among the others of its group, until none exceeds it.

    Args:
        sizes: (n,) finite and above zero, of the samples that this rank owns.
        counts: (G,) of every group, from 0 to its number of samples over all ranks.
        owned: for sums over all ranks.
        groups: (n,) from 0 to G - 1; without them all samples are one.

    Returns:
        (n,) float64 in (0, 1]; 0 in a group whose count is 0.
    """
    groups = np.zeros(len(sizes), np.int64) if groups is None else groups
    counts = np.asarray(counts, np.int64)
    totals = owned.counts_of(np.ones(len(sizes), np.bool_), groups, len(counts))
    certain = (counts == totals)[groups]
    probabilities = np.ones(len(sizes))
    while True:
        num_certain = owned.counts_of(certain, groups, len(counts))
        others = totals - num_certain
        if not others.any():
            return probabilities
        means = owned.means_of(np.where(certain, np.nan, sizes), groups, len(counts))
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = (counts - num_certain) / (means * others)
        probabilities = np.where(certain, 1.0, sizes * scales[groups])
        beyond = probabilities > 1
        if not owned.count(beyond):
            return probabilities
        certain |= beyond


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


def proportional(sizes: NDArray[np.floating], k: int, limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers in proportion to sizes that sum to k, none above its limit.

    What would exceed a limit is set to it, and the rest is shared among the others, until none exceeds it; then the
    largest remainders are rounded up (of equal ones the first).

    Args:
        sizes: (G,) finite, not below zero.
        k: from 0 to the sum of the limits.
        limits: (G,) not below zero.

    Returns:
        (G,) int64.
    """
    shares = np.zeros(len(sizes))
    is_open = limits > 0
    left = k
    while left and is_open.any():
        open_sizes = np.where(is_open, sizes, 0)
        if not open_sizes.sum():
            open_sizes = np.where(is_open, limits, 0).astype(np.float64)  # nothing tells them apart but their limits
        wanted = left * open_sizes / open_sizes.sum()
        beyond = is_open & (wanted >= limits)
        if not beyond.any():
            shares[is_open] = wanted[is_open]
            break
        shares[beyond] = limits[beyond]
        is_open &= ~beyond
        left = k - int(shares.sum())
    shares = np.round(shares, 6)  # so that equal shares have equal remainders
    whole = np.floor(shares).astype(np.int64)
    missing = k - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:missing]] += 1
    return whole
