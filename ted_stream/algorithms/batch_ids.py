"""The sample ids of batches: taken off those that carry them, or known from a sampler's plan."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from composer.utils import dist, reproducibility
from torch.utils.data import DataLoader

from ted_stream.algorithms.ranks import on_every_rank
from ted_stream.pruning import batch_size
from ted_stream.reading import SAMPLE_ID, Prunable, attach_sample_id
from ted_stream.reading.sampler import PrunedSampler

__all__ = ["BatchIds", "CarriedIds", "PlannedIds", "probe_collation", "read_ids", "take_sample_ids"]

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


class BatchIds(Protocol):
    """Tells the sample ids of every training batch.

    Attributes:
        order: what the order of an epoch hangs on, where the dataset keeps no record of that itself.
    """

    order: dict[str, Any]

    def start_epoch(self) -> None:
        """The dataloader's next batch is an epoch's first; one that is resumed starts at its first as well."""
        ...

    def before_batch(self) -> None:
        """A batch is about to come out of the dataloader, to be trained on or to be passed over."""
        ...

    def take(self, batch: Any) -> tuple[Any, torch.Tensor]:
        """The batch as the model expects it, and its (B,) int64 sample ids.

        Raises:
            ValueError: if there is not one id for every sample.
        """
        ...


class CarriedIds:
    """Ids that a Prunable dataset sends along with its samples.

    Args:
        bare: whether samples are neither mappings nor sequences.
    """

    def __init__(self, *, bare: bool = False) -> None:
        self.bare = bare
        self.order: dict[str, Any] = {}

    def start_epoch(self) -> None:
        """Nothing to do: every batch brings its ids."""

    def before_batch(self) -> None:
        """Nothing to do: every batch brings its ids."""

    def take(self, batch: Any) -> tuple[Any, torch.Tensor]:
        """See :func:`take_sample_ids`."""
        return take_sample_ids(batch, bare=self.bare)


class PlannedIds:
    """Ids from a sampler's plan: a DataLoader yields batches in the sampler's order, however far it reads ahead.

    Batches are counted as they come out of the DataLoader. ``batch_in_epoch`` would be wrong where a resumed trainer is
    told not to pass over the batches that were trained on before (``spin_dataloaders=False``).

    Args:
        sampler: of the DataLoader.
        batch_size: of the DataLoader.
    """

    def __init__(self, sampler: PrunedSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.order = {
            "dataset": sampler.layout.fingerprint,
            "shuffle": sampler.shuffle,
            "seed": sampler.seed,
            "drop_last": sampler.drop_last,
            "global batch size": batch_size * sampler.num_replicas,
        }
        self.start_epoch()

    def start_epoch(self) -> None:
        """Count from the first batch again."""
        self._batch = -1

    def before_batch(self) -> None:
        """Count a batch."""
        self._batch += 1

    def take(self, batch: Any) -> tuple[Any, torch.Tensor]:
        """The batch as it is, and its ids, on the CPU.

        Raises:
            ValueError: if the batch has more or fewer rows than the sampler planned.
        """
        ids = torch.from_numpy(self.sampler.ids_of_batch(self._batch, self.batch_size))
        if len(ids) != batch_size(batch):
            raise ValueError(
                f"Batch {self._batch} of the epoch has {batch_size(batch)} rows, but the PrunedSampler planned "
                f"{len(ids)} samples for it, so scores would go to the wrong samples. Let the dataset and the "
                "collate_fn give one row per sample, in order."
            )
        return batch, ids


def read_ids(dataloader: DataLoader) -> BatchIds:
    """How the ids of this dataloader's batches are told; collective.

    Args:
        dataloader: over a Prunable dataset or with a PrunedSampler.

    Raises:
        ValueError: if the ids do not come through the collate function, or the ranks' samplers do not belong together.
    """
    dataset = dataloader.dataset
    if isinstance(dataset, Prunable):
        return CarriedIds(bare=on_every_rank(lambda: probe_collation(dataset, dataloader.collate_fn)))
    assert isinstance(dataloader.sampler, PrunedSampler)
    assert dataloader.batch_size is not None
    planned = PlannedIds(dataloader.sampler, dataloader.batch_size)
    orders = dist.all_gather_object(planned.order)
    for rank, order in enumerate(orders):
        if order != orders[0]:
            raise ValueError(
                f"The samplers of ranks 0 and {rank} differ in {order_difference(orders[0], order)}: the ranks would "
                "not share out one epoch, and samples would go unseen. Make the same PrunedSampler on every rank."
            )
    return planned


def order_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The entries in which two orders differ, with both values."""
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return ", ".join(f"{name} ({first.get(name)!r} and {second.get(name)!r})" for name in names)
