"""Which samples an epoch keeps: ranking keys from scores, and the exact top k of them over all ranks."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.communicator import Communicator
from ted_stream.pruning.hashing import gumbel, hash_ids, uniform

__all__ = [
    "HighestScores",
    "SampledScores",
    "Selection",
    "UniformSample",
    "kth_largest",
    "sortable",
    "top_k_mask",
    "unsortable",
]

_CHUNK = 1 << 20  # values that are binned at a time, which bounds the temporary memory
_RADIX_BITS = 16


class Selection(Protocol):
    """Turns scores into ranking keys; the k highest keys are kept."""

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """Keys of samples, a pure function of their arguments: independent of rank and world size.

        Args:
            scores: (n,) float32 running scores; NaN for a sample that was never measured.
            ids: (n,) int64 sample ids.
            epoch: the epoch that is selected for (0-based).

        Returns:
            (n,) float32, free of NaN. Where scores matter, a sample that was never measured ranks first.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class HighestScores:
    """Keep the highest scores (TED, eq. 20)."""

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """The scores."""
        del ids, epoch
        return np.where(np.isnan(scores), np.float32(np.inf), scores)


@dataclass(frozen=True, kw_only=True)
class SampledScores:
    """Sample k without replacement with probabilities proportional to score^(1/τ), by Gumbel top-k.

    The keys are log(score) / τ + G with G a Gumbel variate of (seed, epoch, id). τ → 0 keeps the highest scores,
    τ → ∞ a uniform sample (the Gumbel top-k trick: Kool, van Hoof and Welling, 2019).

    Args:
        temperature: τ > 0.
        seed: of the Gumbel variates.
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}, but it must be positive; for the limit 0, the highest scores, "
                "choose selection='top_k'."
            )

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """log(score) / τ + G."""
        with np.errstate(divide="ignore"):
            logits = np.log(scores.astype(np.float64)) / self.temperature
        keys = (logits + gumbel(ids, seed=self.seed, epoch=epoch)).astype(np.float32)
        return np.where(np.isnan(scores), np.float32(np.inf), keys)


@dataclass(frozen=True, kw_only=True)
class UniformSample:
    """A fresh uniform sample every epoch, whatever the scores.

    Args:
        seed: of the variates.
    """

    seed: int = 0

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """A uniform variate of (seed, epoch, id)."""
        del scores
        return uniform(ids, seed=self.seed, epoch=epoch).astype(np.float32)


def sortable(keys: NDArray[np.float32]) -> NDArray[np.uint32]:
    """uint32 that order as the float32 do: the sign bit flipped, and all bits of the negative ones."""
    bits = (keys + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0, its equal
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def unsortable(bits: int) -> float:
    """The float32 whose ``sortable`` image is ``bits``."""
    bits = bits ^ (1 << 31) if bits >> 31 else bits ^ 0xFFFFFFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _histogram(values: NDArray[np.unsignedinteger], shift: int) -> NDArray[np.int64]:
    counts = np.zeros(1 << _RADIX_BITS, np.int64)
    for start in range(0, len(values), _CHUNK):
        digits = (values[start : start + _CHUNK] >> shift) & ((1 << _RADIX_BITS) - 1)
        counts += np.bincount(digits.astype(np.int64), minlength=len(counts))
    return counts


def kth_largest(values: NDArray[np.unsignedinteger], k: int, communicator: Communicator) -> tuple[int, int]:
    """The k-th largest value over all ranks, by most-significant-digit radix selection.

    Args:
        values: (n,) uint32 or uint64, this rank's part, of any length.
        k: from 1 to the number of values over all ranks.
        communicator: one all-reduce of 2^16 counts for every 16 bits of a value.

    Returns:
        The k-th largest value, and how many of the values equal to it belong to the k largest.
    """
    found = 0
    for shift in range(values.dtype.itemsize * 8 - _RADIX_BITS, -1, -_RADIX_BITS):
        counts = communicator.all_reduce_sum(_histogram(values, shift))
        at_or_above = np.cumsum(counts[::-1])[::-1]
        digit = int(np.flatnonzero(at_or_above >= k)[-1])
        k -= int(at_or_above[digit] - counts[digit])
        found = found << _RADIX_BITS | digit
        values = values[(values >> shift) & ((1 << _RADIX_BITS) - 1) == digit]
    return found, k


def top_k_mask(
    keys: NDArray[np.float32], k: int, *, first_id: int, seed: int, communicator: Communicator
) -> NDArray[np.bool_]:
    """Mark the k highest keys over all ranks; the same marks for every world size.

    Ties at the k-th key are broken by a seeded hash of the sample id, never by position.

    Args:
        keys: (n,) float32, the keys of the samples first_id … first_id + n - 1, which this rank owns.
        k: how many to mark over all ranks, from 0 to their total.
        first_id: this rank's first sample id.
        seed: of the tie-breaking hash.
        communicator: the ranks.

    Returns:
        (n,) bool.

    Raises:
        ValueError: if a key is NaN or k is out of range; on every rank alike.
    """
    total, invalid = communicator.all_reduce_sum(np.array([len(keys), np.isnan(keys).sum()], np.int64)).tolist()
    if invalid:
        raise ValueError(f"{invalid} of {total} ranking keys are NaN; a NaN has no rank, so it must be dropped before.")
    if not 0 <= k <= total:
        raise ValueError(f"k is {k}, but it must lie in [0, {total}], the number of samples.")
    if k in (0, total):
        return np.full(len(keys), k > 0)
    ordered = sortable(keys)
    threshold, wanted = kth_largest(ordered, k, communicator)
    mask = ordered > threshold
    tied = np.flatnonzero(ordered == threshold)
    hashes = hash_ids(first_id + tied, seed=seed)
    lowest_hash, _ = kth_largest(hashes, wanted, communicator)
    mask[tied[hashes >= lowest_hash]] = True
    return mask
