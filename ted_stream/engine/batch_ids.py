"""The sample ids of batches: taken off those that carry them, or known from a sampler's plan."""

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ted_stream.engine.generators import preserved_generators
from ted_stream.engine.peek import peek
from ted_stream.engine.ranks import Ranks
from ted_stream.engine.row_order import MOST_PROBED, Batch, batches_to_probe, follows_ids
from ted_stream.pruning import batch_size
from ted_stream.pruning.packing import segments_of, unpacked
from ted_stream.pruning.sample_ids import attach_sample_id, take_sample_ids
from ted_stream.pruning.segments import Segments
from ted_stream.sampler import PrunedSampler

__all__ = ["BatchIds", "CarriedIds", "PlannedIds", "Taken", "order_difference", "read_ids"]

_ORDER = (
    "scores would go to the wrong samples. Let it keep one row per sample, in the order of the samples that it is "
    "given, or reorder the ids with the rows."
)
_ROWS = (
    "so scores would go to the wrong samples. Let the dataset, the collate_fn and batch transforms give one row per "
    "sample, in order."
)

# A batch, its ids, and how the samples share its rows, if they do.
Taken = tuple[Any, Tensor, Segments | None]


class BatchIds(Protocol):
    """Tells the sample ids of every training batch.

    Attributes:
        order: what the order of an epoch hangs on, where the dataset keeps no record of that itself.
    """

    order: dict[str, Any]

    def start_epoch(self, skipped: int = 0) -> None:
        """The dataloader's next batch is an epoch's first, or the one after those that it was told to skip."""
        ...

    def before_batch(self) -> None:
        """A batch is about to come out of the dataloader, to be trained on or to be passed over."""
        ...

    def take(self, batch: Any) -> Taken:
        """The batch as the model expects it, its (B,) int64 sample ids, and how they share its rows, if they do.

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

    def start_epoch(self, skipped: int = 0) -> None:
        """Nothing to do: every batch brings its ids."""

    def before_batch(self) -> None:
        """Nothing to do: every batch brings its ids."""

    def take(self, batch: Any) -> Taken:
        """See :func:`take_sample_ids`.

        Raises:
            ValueError: if the batch holds no ids, or not one for every row, or every sample that is packed into rows.
        """
        rest, ids = take_sample_ids(batch, bare=self.bare)
        segments = segments_of(rest, len(ids))
        if segments is None and len(ids) != batch_size(rest):
            raise ValueError(f"A batch has {batch_size(rest)} rows, but {len(ids)} sample ids, {_ROWS}")
        return rest, ids, segments


class PlannedIds:
    """Ids from a sampler's plan: a DataLoader yields batches in the sampler's order, however far it reads ahead.

    Batches are counted as they come out of the DataLoader. A trainer's own count would be wrong where a resumed run is
    told not to pass over the batches that were trained on before (Composer's ``spin_dataloaders=False``).

    Args:
        sampler: of the DataLoader.
        batch_size: of the DataLoader.
    """

    def __init__(self, sampler: PrunedSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.order = {
            "dataset": sampler.layout.shape,  # the content is compared with the scores
            "shuffle": sampler.shuffle,
            "seed": sampler.seed,
            "drop_last": sampler.drop_last,
            "global batch size": batch_size * sampler.num_replicas,
        }
        self.start_epoch()

    def start_epoch(self, skipped: int = 0) -> None:
        """Count from the first batch again, or let the sampler skip the first ones."""
        self.sampler.skip(skipped * self.batch_size)
        self._batch = skipped - 1

    def before_batch(self) -> None:
        """Count a batch."""
        self._batch += 1

    def take(self, batch: Any) -> Taken:
        """The batch as it is, its ids, on the CPU, and how they share its rows, if they do.

        Raises:
            ValueError: if the batch has more or fewer rows, or samples packed into them, than the sampler planned.
        """
        ids = torch.from_numpy(self.sampler.ids_of_batch(self._batch, self.batch_size))
        segments = segments_of(batch, len(ids))
        if segments is None and len(ids) != batch_size(batch):
            raise ValueError(
                f"Batch {self._batch} of the epoch has {batch_size(batch)} rows, but the PrunedSampler planned "
                f"{len(ids)} samples for it, {_ROWS}"
            )
        return batch, ids, segments


def read_ids(loader: DataLoader, ranks: Ranks, batch_transform: Callable[[Any], Any] = lambda batch: batch) -> BatchIds:
    """How the ids of this dataloader's batches are told; collective.

    Args:
        loader: over a Prunable dataset or with a PrunedSampler.
        ranks: that share the training set.
        batch_transform: what the trainer does to a batch before its ids are taken.

    Raises:
        ValueError: if the ids do not come through the collate function and the batch transform, or not with their rows,
            or the ranks' samplers do not belong together.
    """
    sampler = loader.sampler
    if not isinstance(sampler, PrunedSampler):
        return CarriedIds(bare=ranks.on_every_rank(lambda: _probe_carried(loader, batch_transform)))
    assert loader.batch_size is not None, "checked by the sampler"
    planned = PlannedIds(sampler, loader.batch_size)
    ranks.on_every_rank(lambda: _probe_planned(loader, batch_transform))
    orders = ranks.gather_objects(planned.order)
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


def _probe_carried(loader: DataLoader, batch_transform: Callable[[Any], Any]) -> bool:
    """Make batches of some of the dataset's samples with their ids, as training will, and take the ids off again.

    Returns:
        Whether samples are bare: neither mappings nor sequences.

    Raises:
        ValueError: if the ids do not come through the collate function and the batch transform, or not with their rows.
    """
    dataset: Any = loader.dataset
    # Of the first shard alone, which may have to be fetched whole; but two samples, if there are two.
    layout = dataset.layout
    spread = _spread(min(max(2, layout.shards[0].samples), layout.num_samples))
    with preserved_generators():
        dataset.prepare_samples(spread)
        samples = [dataset[index] for index in spread]
    bare = not isinstance(samples[0], (Mapping, tuple, list))

    def batch_of(pairs: Sequence[tuple[int, int]]) -> Batch:
        given = [sample_id for _, sample_id in pairs]
        try:
            with_ids = [attach_sample_id(samples[at], sample_id) for at, sample_id in pairs]
            batch = batch_transform(loader.collate_fn(with_ids))
        except Exception as error:
            raise ValueError(
                f"The collate function, or a batch transform, failed on samples with ids: {error!r}. Samples reach it "
                "with their id: an entry 'sample_id' in mapping samples, a last element in tuple samples. Let it pass "
                "the id through."
            ) from error
        rest, ids = take_sample_ids(batch, bare=bare)
        if sorted(ids.tolist()) != sorted(given):
            raise ValueError(
                f"The collate function, or a batch transform, turned the sample ids {given} into {ids.tolist()}. Let "
                "collate_fn and batch transforms keep every sample, and pass the ids through as an integer tensor of "
                "one id per sample."
            )
        return _by_sample(rest, len(pairs)), ids.tolist()

    for ids in batches_to_probe(len(samples), loader.batch_size):
        if not follows_ids(ids, batch_of):
            raise ValueError(
                f"The collate function, or a batch transform, puts rows into another order than their sample ids, so "
                f"{_ORDER}"
            )
    return bare


def _probe_planned(loader: DataLoader, batch_transform: Callable[[Any], Any]) -> None:
    """Make batches of some of the dataset's samples, as training will.

    Raises:
        ValueError: if the rows come out in another order than the samples went in, or more or fewer of them.
    """
    sampler = loader.sampler
    assert isinstance(sampler, PrunedSampler), "planned by it"
    samples = peek(loader, list(sampler.indices(_spread(sampler.layout.num_samples))))
    if samples is None:
        return

    def batch_of(pairs: Sequence[tuple[int, int]]) -> Batch:
        batch = batch_transform(loader.collate_fn([_anew(samples[at]) for at, _ in pairs]))
        return _by_sample(batch, len(pairs)), [sample_id for _, sample_id in pairs]

    for ids in batches_to_probe(len(samples), loader.batch_size):
        if not follows_ids(ids, batch_of):
            raise ValueError(
                f"The collate function, or a batch transform, puts rows into another order than that of its samples, "
                f"so {_ORDER}"
            )


def _by_sample(batch: Any, samples: int) -> Any:
    """The batch with a row for every sample, also of those that are packed into rows.

    Raises:
        ValueError: if there are more or fewer.
    """
    segments = segments_of(batch, samples)
    if segments is not None:
        return unpacked(batch, segments)
    if batch_size(batch) != samples:
        raise ValueError(
            f"The collate function, or a batch transform, makes {batch_size(batch)} rows of {samples} samples, {_ROWS}"
        )
    return batch


def _spread(among: int) -> list[int]:
    """Samples spread evenly over the first ones of a dataset."""
    return np.linspace(0, among - 1, min(among, MOST_PROBED), dtype=int).tolist()


def _anew(sample: Any) -> Any:
    """A sample that a collate function may take apart."""
    return copy.copy(sample) if isinstance(sample, (MutableMapping, MutableSequence)) else sample
