"""Sample ids that travel with samples, through collation, and are taken off the batch."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

__all__ = ["SAMPLE_ID", "attach_sample_id", "take_sample_ids"]

SAMPLE_ID = "sample_id"

_FIX = (
    f"Samples reach the collate function with their id: an entry {SAMPLE_ID!r} in mapping samples, a last element in "
    "tuple samples. Let collate_fn and batch transforms pass it through as an integer tensor of one id per sample."
)


def attach_sample_id(sample: Any, sample_id: int) -> Any:
    """A sample together with its id.

    Args:
        sample: a mapping, which gains an entry ``sample_id``; or a tuple or list, which gains a last element; or
            anything else, which becomes the pair of itself and the id.
        sample_id: the global sample id.

    Raises:
        ValueError: if a mapping has an entry of that name already.
    """
    if isinstance(sample, Mapping):
        if SAMPLE_ID in sample:
            raise ValueError(
                f"The samples have a column {SAMPLE_ID!r} of their own, which would be overwritten by the id that "
                "pruning needs; rename the column, or drop it in the dataset's __getitem__."
            )
        return {**sample, SAMPLE_ID: sample_id}
    if isinstance(sample, (tuple, list)):
        return (*sample, sample_id)
    return sample, sample_id


def take_sample_ids(batch: Any, *, bare: bool) -> tuple[Any, torch.Tensor]:
    """Split a collated batch into what the model expects and the (B,) int64 sample ids, copied on their device.

    Args:
        batch: a mapping with an entry ``sample_id``, or a sequence whose last element is the ids.
        bare: whether samples are neither mappings nor sequences, so that the batch is the pair (inputs, ids).

    Raises:
        ValueError: if the batch holds no ids.
    """
    if isinstance(batch, Mapping):
        if SAMPLE_ID not in batch:
            raise ValueError(f"The batch has no {SAMPLE_ID!r} among {sorted(map(str, batch))}. {_FIX}")
        ids = batch[SAMPLE_ID]
        if isinstance(batch, MutableMapping):
            del batch[SAMPLE_ID]
            rest = batch
        else:
            rest = {key: value for key, value in batch.items() if key != SAMPLE_ID}
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        ids, rest = batch[-1], batch[:-1]
        if bare:
            rest = rest[0]
    else:
        raise ValueError(f"A batch of type {type(batch).__name__} holds no sample ids. {_FIX}")
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 1:
        what = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"The sample ids of the batch are {what}, not (B,) integers. {_FIX}")
    # A copy, since a worker's tensor keeps its shared memory open; and no look at the values, which would wait for the
    # device where a transform put the batch on one.
    return rest, ids.to(torch.int64, copy=True)
