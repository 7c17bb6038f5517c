"""A sampler that leaves pruned samples of a map-style dataset out before an epoch is dealt out to the ranks."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from streaming.base.distributed import get_rank, get_world_size
from torch.utils.data import DistributedSampler, IterableDataset

from ted_stream.reading.storage import read_bytes
from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout, from_bytes

__all__ = ["BLOCK_SIZE", "PrunedSampler"]

BLOCK_SIZE = 1 << 16  # ids per row of a skip-list: one container of its bitmaps, 1,526 rows for 10^8 samples


class PrunedSampler(DistributedSampler[int]):
    """A drop-in DistributedSampler whose samples can be pruned: by an algorithm while training, or by a fixed list.

    For any dataset with ``__len__`` and ``__getitem__``: torchvision's, Hugging Face's, a torch Subset. The id of a
    sample is its index in this dataset; in a Subset, its position in the Subset.

    An epoch is a function of the active list, the seed, the epoch and the number of ranks. The kept samples are
    shuffled as DistributedSampler shuffles all samples (``torch.randperm`` seeded with seed + epoch), and rank r of W
    takes every W-th one, from the r-th on. Every rank gets equally many, whatever the list leaves:

    - ``drop_last=False``: the order's first samples are repeated at its end, up to W - 1 of them;
    - ``drop_last=True``: up to W - 1 kept samples at the order's end go unseen in that epoch, others in the next one if
      it is shuffled. (A DataLoader's own ``drop_last`` leaves out each rank's last batch if it is not full.)

    Without a list it yields what DistributedSampler yields, in the same order. Unlike that one it needs no process
    group to be made: before there is one, rank and world size are those of the launcher's environment variables.

    ``len`` is the number of samples that this rank will yield in the coming epoch.

    For a skip-list the dataset is one stream of "shards" of 65,536 consecutive ids, named by ``name`` and their first
    and last id, of size 0. A list of a dataset of another length or name is refused. What the samples are is not looked
    at: another dataset of the same length, or the same samples in another order, goes undetected unless ``name`` tells
    them apart.

    Args:
        dataset: the map-style dataset that the DataLoader reads.
        num_replicas: W, the number of ranks; by default all.
        rank: of this process.
        shuffle: shuffle anew in every epoch (with ``set_epoch``, which Composer calls).
        seed: the same on all ranks.
        drop_last: see above.
        skip_list: train on a fixed subset: a :class:`SkipList`, or the path or URI of its file.
        name: of the dataset, for its skip-lists: "imagenet/train", or a Hugging Face dataset's fingerprint.

    Raises:
        SkipListError: if the skip-list does not belong to this dataset.
        ValueError: if the dataset is empty or not map-style, or the list leaves too few samples.
    """

    def __init__(
        self,
        dataset: Any,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        skip_list: SkipList | str | None = None,
        name: str = "samples",
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"A {type(dataset).__name__} is not a map-style dataset with __len__ and __getitem__, so a sampler "
                "cannot choose among its samples. Use PrunedStreamingDataset for streaming data."
            )
        if len(dataset) == 0:
            raise ValueError(f"The {type(dataset).__name__} is empty; a sampler needs at least one sample.")
        has_group = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if has_group else get_world_size()
        if rank is None:
            rank = dist.get_rank() if has_group else get_rank()
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)
        self.layout = _layout(name, len(dataset))
        self.fixed_skip_list: SkipList | None = None
        if skip_list is not None:
            if isinstance(skip_list, str):
                skip_list = from_bytes(read_bytes(skip_list), source=skip_list)
            self.fixed_skip_list = skip_list.aligned_to(self.layout)
        self.activate(self.fixed_skip_list)

    @property
    def full_epoch_size(self) -> int:
        """Samples of an epoch over all ranks when nothing is pruned."""
        return self.layout.num_samples

    @property
    def fewest_samples(self) -> int:
        """The fewest kept samples that give every rank one."""
        return self.num_replicas if self.drop_last else 1

    @property
    def replication(self) -> int | None:
        """How many ranks in a row get the same samples: None, every rank gets its own."""
        return None

    def activate(self, skip_list: SkipList | None, *, sample_ids: bool = False) -> None:
        """Make a skip-list the active one from the next epoch on; every rank calls it with the same list.

        Args:
            skip_list: drops its pruned samples; ``None`` drops nothing.
            sample_ids: no matter here: samples stay as they are, and :meth:`ids_of_batch` tells the ids.

        Raises:
            SkipListError: if the list belongs to another dataset.
            ValueError: if too few samples remain.
        """
        del sample_ids
        if skip_list is not None:
            skip_list = skip_list.aligned_to(self.layout)
        kept = self.full_epoch_size if skip_list is None else skip_list.num_kept
        if kept < self.fewest_samples:
            raise ValueError(
                f"{kept} samples are to be kept, but it takes {self.fewest_samples} to give each of "
                f"{self.num_replicas} ranks one with drop_last={self.drop_last}. Prune less."
            )
        self.num_samples = kept // self.num_replicas if self.drop_last else -(-kept // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas
        self._active = skip_list
        self._plan: tuple[int, NDArray[np.int64]] | None = None  # of the epoch that was planned last

    def _planned(self) -> NDArray[np.int64]:
        """The ids that this rank yields in the current epoch, in order: int64, shape (num_samples,)."""
        if self._plan is None or self._plan[0] != self.epoch:
            kept = self.full_epoch_size if self._active is None else self._active.num_kept
            # Beyond the end the order starts again.
            ids = np.arange(self.rank, self.total_size, self.num_replicas) % kept
            if self.shuffle:
                generator = torch.Generator()
                generator.manual_seed(self.seed + self.epoch)
                ids = torch.randperm(kept, generator=generator).numpy()[ids]
            if self._active is not None:
                ids = self._active.kept_ids()[ids]
            self._plan = self.epoch, ids
        return self._plan[1]

    def __iter__(self) -> Iterator[int]:
        """This rank's ids in the current epoch, as Python integers."""
        ids = self._planned()
        # In pieces, since 10^8 Python integers at once take 3 GB.
        return chain.from_iterable(ids[start : start + BLOCK_SIZE].tolist() for start in range(0, len(ids), BLOCK_SIZE))

    def ids_of_batch(self, batch: int, batch_size: int) -> NDArray[np.int64]:
        """The ids in one of this rank's batches of the current epoch, however far a DataLoader has read ahead.

        Args:
            batch: its number within the epoch, from 0.
            batch_size: of the DataLoader.

        Returns:
            int64, shape (batch_size,); fewer in the last batch.
        """
        return self._planned()[batch * batch_size : (batch + 1) * batch_size]


def _layout(name: str, num_samples: int) -> DatasetLayout:
    shards = []
    for first in range(0, num_samples, BLOCK_SIZE):
        last = min(first + BLOCK_SIZE, num_samples) - 1
        shards.append(ShardLayout(name=f"{name}/{first:012}-{last:012}", size=0, samples=last - first + 1))
    return DatasetLayout(streams=(StreamLayout(shards=tuple(shards)),))
