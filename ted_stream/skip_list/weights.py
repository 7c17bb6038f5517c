"""The weights of a skip-list's kept samples, checked."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ted_stream.skip_list.errors import SkipListError
from ted_stream.skip_list.layout import DatasetLayout

Weights = npt.NDArray[np.float32]


def checked(weights: Weights, layout: DatasetLayout, kept_per_shard: npt.NDArray[np.int64]) -> Weights:
    """A read-only float32 copy of ``weights``; ``weights`` themselves if they are one already.

    Args:
        weights: By ascending id of the kept samples: floats, shape (num_kept,).
        layout: The dataset.
        kept_per_shard: Kept samples of each shard: int64, shape (num_shards,).

    Raises:
        SkipListError: They are of another count or dtype, or one is not finite and above 0.
    """
    weights = np.asarray(weights)
    num_kept = int(kept_per_shard.sum())
    if weights.shape != (num_kept,) or not np.issubdtype(weights.dtype, np.floating):
        raise SkipListError(
            f"weights have shape {weights.shape} and dtype {weights.dtype}; give float32, one for each of the "
            f"{num_kept} kept samples in ascending order of their ids, or None if all weigh alike"
        )
    with np.errstate(over="ignore"):  # what overflows is refused
        weights = weights.astype(np.float32, copy=weights.flags.writeable or not weights.flags.owndata)
    weights.flags.writeable = False
    wrong = ~((weights > 0) & (weights < np.inf))
    if wrong.any():
        first = int(wrong.argmax())
        shard = layout.shards[np.searchsorted(np.cumsum(kept_per_shard), first, side="right")]
        raise SkipListError(
            f"{np.count_nonzero(wrong)} of {num_kept} weights are not finite and above 0, the first {weights[first]} "
            f"in shard {shard.name!r}; prune a sample that is to count nothing"
        )
    return weights


def joined(parts: Sequence[Weights]) -> Weights:
    """The weights of several shards as one read-only array, which `checked` need not copy."""
    weights = np.concatenate(parts)
    weights.flags.writeable = False
    return weights
