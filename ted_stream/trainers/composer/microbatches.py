"""Whether microbatches hold the rows of their batch in order, as the sample ids are sliced."""

from typing import Any

import torch

from ted_stream.engine.row_order import rows_of
from ted_stream.pruning import batch_size
from ted_stream.pruning.batches import tensors_of

__all__ = ["check_microbatch"]


def check_microbatch(batch: Any, first_row: int, microbatch: Any) -> None:
    """Refuse a split that reorders rows. It looks at values: once in a run, at its first batch.

    Tensors that a transform or another algorithm has changed show nothing.

    Args:
        batch: the whole one.
        first_row: the row of it that the microbatch begins with.
        microbatch: that is about to be forwarded.

    Raises:
        ValueError: if its rows are rows of the batch, but not those that follow ``first_row`` in order.
    """
    rows = slice(first_row, first_row + batch_size(microbatch))
    moved = False
    for whole, part in zip(tensors_of(batch), tensors_of(microbatch), strict=False):
        if not whole.ndim or not part.ndim or whole.shape[1:] != part.shape[1:] or whole.dtype != part.dtype:
            continue
        if torch.equal(whole[rows].to(part.device), part):  # microbatches move to the device one by one
            return
        moved = moved or set(rows_of(part)) <= set(rows_of(whole))
    if moved:
        raise ValueError(
            f"The microbatch of rows {rows.start} to {rows.stop - 1} holds other rows of its batch, or in another "
            "order, so scores would go to the wrong samples. Let the DataSpec's split_batch and microbatch_transforms "
            "keep rows in order, one per sample."
        )
