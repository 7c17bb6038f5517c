"""Whether the rows of batches stand where their samples do, told from what the batches hold."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ted_stream.engine.generators import preserved_generators
from ted_stream.pruning.batches import tensors_of

__all__ = ["MOST_PROBED", "Batch", "batches_to_probe", "follows_ids", "rows_of"]

MOST_PROBED = 16  # samples: enough that a tie between some of them hides nothing

Batch = tuple[Any, Sequence[int]]


def batches_to_probe(count: int, batch_size: int | None) -> Iterator[range]:
    """Samples 0 … count - 1 in batches that are no larger than those of training.

    Args:
        count: of samples.
        batch_size: of training; ``None`` for one batch of all.
    """
    size = batch_size or count
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def follows_ids(ids: Sequence[int], batch_of: Callable[[Sequence[tuple[int, int]]], Batch]) -> bool:
    """Make batches of the same samples in several orders, and see whether rows go where their ids do.

    Every batch is made from the same state of the random generators, so that one drawn number (a MixUp's share, the
    place of a crop) is the same in all of them.

    Args:
        ids: of the samples, all different.
        batch_of: makes a batch of (sample, id) pairs, and tells the ids of its rows.

    Returns:
        False only if a tensor shows that rows moved and ids did not, or the reverse, and no tensor shows the contrary:
        what a random augmentation changed, or rows that are alike, show nothing.
    """

    def made(pairs: Sequence[tuple[int, int]]) -> tuple[list[list[bytes]], Sequence[int]]:
        with preserved_generators():
            batch, found = batch_of(pairs)
        return [rows_of(tensor) if tensor.shape[:1] == (len(ids),) else [] for tensor in tensors_of(batch)], found

    # A step that puts rows into an order of its own may suit one of these, not all.
    orders = [ids, ids[::-1], [*ids[1:], *ids[:1]]]
    batches = [made([(sample_id, sample_id) for sample_id in order]) for order in orders]
    alike, _ = made([(ids[0], sample_id) for sample_id in ids])
    moved = False
    for same, *columns in zip(alike, *(tensors for tensors, _ in batches), strict=False):
        if len(set(same)) != 1 or not all(columns):
            continue  # differs between rows of one sample: numbers of rows, noise; or has no rows
        by_id = [dict(zip(found, rows, strict=True)) for rows, (_, found) in zip(columns, batches, strict=True)]
        if all(rows == by_id[0] for rows in by_id):
            if any(rows != columns[0] for rows in columns):
                return True
        elif all(sorted(rows) == sorted(columns[0]) for rows in columns):
            moved = True
    return not moved


def rows_of(tensor: Tensor) -> list[bytes]:
    """A fingerprint of every row of a tensor (B, …), which may be larger than one would like to keep."""
    rows = tensor.detach().cpu().contiguous()
    return [hashlib.blake2b(row.reshape(-1).view(torch.uint8).numpy().data).digest() for row in rows]
