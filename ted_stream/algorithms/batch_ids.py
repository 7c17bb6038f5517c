"""Sample ids in batches: taken off before the model sees the batch, and checked before the run."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from composer.utils import reproducibility

from ted_stream.pruning import batch_size
from ted_stream.reading import SAMPLE_ID, attach_sample_id

__all__ = ["probe_collation", "take_sample_ids"]

_FIX = (
    f"Samples reach the collate function with their id: an entry {SAMPLE_ID!r} in mapping samples, a last element in "
    "tuple samples. Let your collate_fn pass it through as an integer tensor of one id per sample."
)


def take_sample_ids(batch: Any, *, bare: bool) -> tuple[Any, torch.Tensor]:
    """Split a collated batch into what the model expects and the (B,) int64 sample ids, copied on their device.

    Args:
        batch: a mapping with an entry ``sample_id``, or a sequence whose last element is the ids.
        bare: whether samples are neither mappings nor sequences, so that the batch is the pair (inputs, ids).

    Raises:
        ValueError: if the batch holds no ids, or not one for every sample.
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
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 1 or len(ids) != batch_size(rest):
        what = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"The sample ids of the batch are {what}, not ({batch_size(rest)},) integers. {_FIX}")
    # A copy, since a worker's tensor keeps its shared memory open; and no look at the values, which would wait for the
    # device where a transform put the batch on one.
    return rest, ids.to(torch.int64, copy=True)


@contextmanager
def _preserved_randomness() -> Iterator[None]:
    states = reproducibility.get_rng_state()
    try:
        yield
    finally:
        reproducibility.load_rng_state(states)


def probe_collation(dataset: Any, collate: Any) -> bool:
    """Collate the dataset's first sample with an id, as training will, and take the id off again.

    Returns:
        Whether samples are bare: neither mappings nor sequences.

    Raises:
        ValueError: if the ids do not come through the collate function.
    """
    with _preserved_randomness():
        sample = dataset.first_sample()
        bare = not isinstance(sample, (Mapping, tuple, list))
        try:
            batch = collate([attach_sample_id(sample, sample_id) for sample_id in (0, 1)])
        except Exception as error:
            raise ValueError(f"The collate function failed on samples with ids: {error!r}. {_FIX}") from error
    _, ids = take_sample_ids(batch, bare=bare)
    if ids.tolist() != [0, 1]:
        raise ValueError(f"The collate function turned the sample ids 0, 1 into {ids.tolist()}. {_FIX}")
    return bare
