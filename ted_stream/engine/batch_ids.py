"""The sample ids of batches: taken off those that carry them, or known from a sampler's plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ted_stream.engine.generators import preserved_generators
from ted_stream.engine.ranks import Ranks
from ted_stream.pruning import batch_size
from ted_stream.pruning.batches import tensors_of
from ted_stream.pruning.sample_ids import attach_sample_id, take_sample_ids
from ted_stream.sampler import PrunedSampler

__all__ = ["BatchIds", "CarriedIds", "PlannedIds", "follows_ids", "order_difference", "read_ids", "rows_of"]

_ORDER = (
    "scores would go to the wrong samples. Let it keep one row per sample, in the order of the samples that it is "
    "given, or reorder the ids with the rows."
)


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

    def take(self, batch: Any) -> tuple[Any, Tensor]:
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

    def take(self, batch: Any) -> tuple[Any, Tensor]:
        """See :func:`take_sample_ids`."""
        return take_sample_ids(batch, bare=self.bare)


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

    def take(self, batch: Any) -> tuple[Any, Tensor]:
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


def read_ids(loader: DataLoader, ranks: Ranks) -> BatchIds:
    """How the ids of this dataloader's batches are told; collective.

    Args:
        loader: over a Prunable dataset or with a PrunedSampler.
        ranks: that share the training set.

    Raises:
        ValueError: if the ids do not come through the collate function or not with their rows, or the ranks' samplers
            do not belong together.
    """
    sampler, collate = loader.sampler, loader.collate_fn
    if not isinstance(sampler, PrunedSampler):
        return CarriedIds(bare=ranks.on_every_rank(lambda: _probe_carried(loader.dataset, collate)))
    assert loader.batch_size is not None, "checked by the sampler"
    planned = PlannedIds(sampler, loader.batch_size)
    ranks.on_every_rank(lambda: _probe_planned(loader.dataset, collate))
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


def _probe_carried(dataset: Any, collate: Callable[[list[Any]], Any]) -> bool:
    """Collate the dataset's first samples with their ids, as training will, and take the ids off again.

    Returns:
        Whether samples are bare: neither mappings nor sequences.

    Raises:
        ValueError: if the ids do not come through the collate function, or not with their rows.
    """
    with preserved_generators():
        samples = dataset.first_samples()
        bare = not isinstance(samples[0], (Mapping, tuple, list))
        pair = [(sample, sample_id) for sample_id, sample in enumerate([samples[0], samples[-1]])]

        def collated(order: Sequence[int]) -> tuple[Any, list[int]]:
            try:
                batch = collate([attach_sample_id(*pair[at]) for at in order])
            except Exception as error:
                raise ValueError(
                    f"The collate function failed on samples with ids: {error!r}. Samples reach it with their id: an "
                    "entry 'sample_id' in mapping samples, a last element in tuple samples. Let it pass the id through."
                ) from error
            rest, ids = take_sample_ids(batch, bare=bare)
            if sorted(ids.tolist()) != [0, 1]:
                raise ValueError(
                    f"The collate function turned the sample ids {list(order)} into {ids.tolist()}. Let your "
                    "collate_fn pass them through as an integer tensor of one id per sample."
                )
            return rest, ids.tolist()

        first, first_ids = collated((0, 1))
        second, second_ids = collated((1, 0))
    if not follows_ids(first, first_ids, second, second_ids):
        raise ValueError(f"The collate function puts rows into another order than their sample ids, so {_ORDER}")
    return bare


def _probe_planned(dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
    """Collate the dataset's first samples in either order.

    Raises:
        ValueError: if the rows come out in another order than the samples went in.
    """
    if len(dataset) < 2:
        return
    with preserved_generators():
        samples = [dataset[0], dataset[1]]
        first, second = collate(samples), collate(samples[::-1])
    if not follows_ids(first, [0, 1], second, [1, 0]):
        raise ValueError(f"The collate function puts rows into another order than that of its samples, so {_ORDER}")


def follows_ids(first: Any, first_ids: Sequence[int], second: Any, second_ids: Sequence[int]) -> bool:
    """Whether rows of the same samples stand where their ids do in two batches.

    Args:
        first: a batch.
        first_ids: the ids of its rows, all different.
        second: another batch of the same samples.
        second_ids: the ids of its rows.

    Returns:
        False only if a tensor shows that rows moved and ids did not, or the reverse, and no tensor shows the contrary:
        what a random augmentation changed shows nothing.
    """
    at = [list(second_ids).index(sample_id) for sample_id in first_ids]
    moved = False
    for one, other in zip(tensors_of(first), tensors_of(second), strict=False):
        if one.ndim == 0 or one.shape != other.shape or len(one) != len(at):
            continue
        if torch.equal(one, one.flip(0)) and len(one) == 2:
            continue  # rows that are alike show nothing
        if torch.equal(one, other[at]):
            return True
        moved = moved or _same_rows(one, other)
    return not moved


def _same_rows(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same rows, in whatever order."""
    return sorted(rows_of(one)) == sorted(rows_of(other))


def rows_of(tensor: Tensor) -> list[bytes]:
    """The bytes of every row of a tensor (B, …)."""
    rows = tensor.detach().reshape(len(tensor), -1).cpu().contiguous()
    return [row.view(torch.uint8).numpy().tobytes() for row in rows]
