"""Whether microbatches hold the rows of their batch in order, as the sample ids are sliced."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ted_stream.engine.row_order import rows_of
from ted_stream.pruning import batch_size
from ted_stream.pruning.batches import tensors_of

__all__ = ["check_microbatch"]


def check_microbatch(whole: Sequence[Tensor], first_row: int, microbatch: Any, suspects: Sequence[str]) -> None:
    """Refuse a microbatch whose rows are not where its sample ids are. It looks at values: in an epoch's first batch.

    Tensors that a transform or another algorithm has changed show nothing, nor do those of rows that are all alike.

    Args:
        whole: the tensors of the batch as the dataloader gave it.
        first_row: the row of it that the microbatch begins with.
        microbatch: that is about to be forwarded.
        suspects: the other algorithms.

    Raises:
        ValueError: if its rows are rows of the batch, but not those that follow ``first_row`` in order.
    """
    rows = slice(first_row, first_row + batch_size(microbatch))
    moved = False
    for given, part in zip(whole, tensors_of(microbatch), strict=False):
        if not given.ndim or not part.ndim or given.shape[1:] != part.shape[1:] or given.dtype != part.dtype:
            continue
        expected = given[rows].to(part.device)  # microbatches move to the device one by one
        if expected.shape != part.shape or not ((expected == part) | (expected.isnan() & part.isnan())).all():
            moved = moved or set(rows_of(part)) <= set(rows_of(given))
        elif (given != given[:1]).any():
            return
    if moved:
        names = ", ".join([*suspects, "split_batch", "microbatch_transforms"])
        raise ValueError(
            f"The microbatch of rows {rows.start} to {rows.stop - 1} holds other rows of its batch, or in another "
            f"order, so scores would go to the wrong samples. One of these moves rows: {names}. Remove it, or let it "
            "keep rows in order, one per sample."
        )
