"""Which bytes of a shard to ask for: all of it, or ranges around the samples that are wanted."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_REQUEST", "choose_ranges", "chunks", "merge_samples"]

MAX_REQUEST = 8 << 20
"""Bytes of the longest request: a retry repeats no more, and the parts of a long run travel side by side."""


def merge_samples(offsets: NDArray[np.int64], wanted: NDArray[np.int64], *, min_gap: int) -> NDArray[np.int64]:
    """Merge wanted samples into runs that one request each fetches.

    Args:
        offsets: (samples + 1,) int64; sample i is the bytes [offsets[i], offsets[i + 1]) of its shard.
        wanted: (n,) int64, ascending positions of samples, n ≥ 1.
        min_gap: a run of fewer unwanted bytes than these is fetched along with what it separates.

    Returns:
        (m, 2) int64: each row the first sample of a run and the one after its last. A run longer than
        ``MAX_REQUEST`` bytes is cut between samples.
    """
    begins = offsets[wanted]
    gaps = begins[1:] - offsets[wanted[:-1] + 1]
    starts_run = np.concatenate(([True], gaps >= max(min_gap, 1)))
    run_begins = begins[starts_run][np.cumsum(starts_run) - 1]  # of each sample's run
    piece = (begins - run_begins) // MAX_REQUEST
    starts = np.flatnonzero(starts_run | (np.diff(piece, prepend=0) > 0))
    stops = np.concatenate((starts[1:], [len(wanted)])) - 1
    return np.stack((wanted[starts], wanted[stops] + 1), axis=1)


def choose_ranges(
    offsets: NDArray[np.int64], wanted: NDArray[np.int64], *, size: int, request_latency: int, min_gap: int
) -> NDArray[np.int64] | None:
    """The runs to fetch, or ``None`` where fetching the whole shard costs no more.

    A request costs the bytes that it transfers and ``request_latency`` bytes more.

    Args:
        offsets: see :func:`merge_samples`.
        wanted: see :func:`merge_samples`.
        size: bytes of the whole shard.
        request_latency: bytes that the link could have transferred while a request waits for its first byte.
        min_gap: see :func:`merge_samples`.
    """
    runs = merge_samples(offsets, wanted, min_gap=min_gap)
    by_ranges = (offsets[runs[:, 1]] - offsets[runs[:, 0]]).sum() + len(runs) * request_latency
    whole = size + len(chunks(size)) * request_latency
    return runs if by_ranges < whole else None


def chunks(size: int) -> list[tuple[int, int]]:
    """The requests [begin, end) that fetch a whole file of ``size`` bytes."""
    return [(begin, min(begin + MAX_REQUEST, size)) for begin in range(0, size, MAX_REQUEST)]
