"""Seeded hashes of sample ids: randomness that depends on nothing but the seed, the epoch and the id."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["gumbel", "hash_ids", "uniform"]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014) of one 64-bit integer."""
    return int(_mix_array(np.array([value & _MASK], np.uint64))[0])


def _mix_array(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_ids(ids: NDArray[np.int64], *, seed: int, epoch: int = 0) -> NDArray[np.uint64]:
    """A 64-bit hash of every id.

    For one (seed, epoch) it is a bijection of 64-bit integers, so different ids never collide.

    Args:
        ids: (n,) int64 sample ids.
        seed: any integer.
        epoch: mixed into the seed, so that every epoch has hashes of its own.

    Returns:
        (n,) uint64.
    """
    key = _mix(_mix(seed) + epoch * _GOLDEN)
    return _mix_array((ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) ^ np.uint64(key))


def uniform(ids: NDArray[np.int64], *, seed: int, epoch: int = 0) -> NDArray[np.float64]:
    """(n,) float64 variates, uniform in the open interval (0, 1), one for every id."""
    # 52 bits, so that adding the half is exact and the largest value stays below 1.
    return ((hash_ids(ids, seed=seed, epoch=epoch) >> np.uint64(12)) + 0.5) * 2.0**-52


def gumbel(ids: NDArray[np.int64], *, seed: int, epoch: int = 0) -> NDArray[np.float64]:
    """(n,) float64 standard Gumbel variates, -log(-log u), one for every id."""
    return -np.log(-np.log(uniform(ids, seed=seed, epoch=epoch)))
