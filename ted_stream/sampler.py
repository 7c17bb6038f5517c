"""A sampler that leaves pruned samples of a map-style dataset out before an epoch is dealt out to the ranks."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ted_stream.seeding import SeededIndex, SeededSamples, refuse_nested
from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout, unweighted

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

    Memory: planning an epoch of N samples of which K are kept takes 4 bytes per kept sample on every rank when it
    shuffles, and then N + 4·K bytes when a list is active; each epoch is planned when its first id is asked for. What
    stays are the 4 bytes of each id that this rank yields, about 4·K/W, and the skip-list (1 to 3 bits per sample). So
    10^8 samples take 0.5 GB per rank for a moment. With 2^31 samples or more, every 4 is an 8.

    Args:
        dataset: the map-style dataset that the DataLoader reads.
        num_replicas: W, the number of ranks; by default all.
        rank: of this process.
        shuffle: shuffle anew in every epoch (with ``set_epoch``, which Composer calls).
        seed: the same on all ranks.
        drop_last: see above.
        skip_list: train on a fixed subset: a :class:`SkipList` without weights, or the path or URI of its file.
        name: of the dataset, for its skip-lists: "imagenet/train", or a Hugging Face dataset's fingerprint. Lists go
            by name and length alone: give another name where samples were changed.
        layout: of the shards that the dataset was read from, in whose order its samples are, where its skip-lists are
            to be those of these shards; ``name`` is not needed then.

    Raises:
        SkipListError: if the skip-list does not belong to this dataset.
        ValueError: if the dataset is empty, not map-style or around SeededSamples, the list has weights or leaves too
            few samples, or the rank or number of ranks is impossible.
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
        skip_list: SkipList | str | os.PathLike[str] | None = None,
        name: str = "samples",
        layout: DatasetLayout | None = None,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"A {type(dataset).__name__} is not a map-style dataset with __len__ and __getitem__, so a sampler "
                "cannot choose among its samples. Use PrunedStreamingDataset for streaming data."
            )
        if len(dataset) == 0:
            raise ValueError(f"The {type(dataset).__name__} is empty; a sampler needs at least one sample.")
        refuse_nested(dataset)
        has_group = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if has_group else _of_launcher("WORLD_SIZE", otherwise=1)
        if rank is None:
            rank = dist.get_rank() if has_group else _of_launcher("RANK", otherwise=0)
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"Rank {rank} of {num_replicas} ranks is none of 0 to {num_replicas - 1}, so it has no share of the "
                "samples. Pass rank and num_replicas together, or let the launcher set RANK and WORLD_SIZE."
            )
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)
        if layout is not None and layout.num_samples != len(dataset):
            raise ValueError(
                f"The layout has {layout.num_samples} samples, the {type(dataset).__name__} {len(dataset)}. Pass that "
                "of the shards which the dataset was read from, all of them and in order."
            )
        self.layout = _layout(name, len(dataset)) if layout is None else layout
        self._skipped = 0
        self.fixed_skip_list: SkipList | None = None
        if skip_list is not None:
            self.fixed_skip_list = unweighted(skip_list, reader=type(self).__name__).aligned_to(self.layout)
        self.activate(self.fixed_skip_list)

    @property
    def full_epoch_size(self) -> int:
        """Samples of an epoch over all ranks when nothing is pruned."""
        return self.layout.num_samples

    @property
    def seed_samples(self) -> bool:
        """Whether the dataset is one of SeededSamples, read under random states of the samples' own."""
        return isinstance(self.dataset, SeededSamples)

    @property
    def fewest_samples(self) -> int:
        """The fewest kept samples that give every rank one."""
        return self.num_replicas if self.drop_last else 1

    def samples_of_rank(self, kept: int) -> int:
        """How many samples every rank yields of an epoch that keeps so many, repeats included."""
        return kept // self.num_replicas if self.drop_last else -(-kept // self.num_replicas)

    def fewest_for(self, loader: DataLoader) -> tuple[int, str]:
        """The fewest samples that an epoch can have through a DataLoader, and what to say of fewer."""
        assert loader.batch_size is not None, "see check_loader"
        full_batches = loader.batch_size - 1 if loader.drop_last else 0
        fewest = full_batches * self.num_replicas + self.fewest_samples
        reason = (
            f"it takes {fewest} to give each of {self.num_replicas} ranks a batch with drop_last={self.drop_last} for "
            f"the sampler and drop_last={loader.drop_last} for the DataLoader. Prune less, or pass drop_last=False."
        )
        return fewest, reason

    def check_loader(self, loader: DataLoader, *, rank: int, world_size: int) -> None:
        """Refuse a DataLoader through which samples would get the ids of others, or be trained on twice or not at all.

        Raises:
            ValueError: saying what to change.
        """
        if loader.batch_size is None:
            raise ValueError(
                "The DataLoader has batch_size=None, so the dataset makes batches, and which samples they hold is not "
                "known. Pass the DataLoader a batch_size, and let the dataset give single samples."
            )
        if not loader.in_order:
            raise ValueError(
                "The DataLoader has in_order=False, so its batches come in another order than that of the "
                "PrunedSampler, and scores would go to the wrong samples. Drop in_order=False."
            )
        length = len(loader.dataset)  # pyright: ignore[reportArgumentType]
        if length != self.layout.num_samples:
            raise ValueError(
                f"The PrunedSampler was made for {self.layout.num_samples} samples, the DataLoader's dataset has "
                f"{length}. Pass both the same dataset, and make the sampler once the dataset has its final length."
            )
        refuse_nested(loader.dataset)
        if isinstance(loader.dataset, SeededSamples) != self.seed_samples:
            raise ValueError(
                f"The PrunedSampler was made for a {type(self.dataset).__name__}, the DataLoader reads a "
                f"{type(loader.dataset).__name__}, so samples would not be seeded. Make data = SeededSamples(dataset) "
                "once, and pass it to both."
            )
        if (self.rank, self.num_replicas) != (rank, world_size):
            raise ValueError(
                f"The PrunedSampler is that of rank {self.rank} of {self.num_replicas}, but this is rank {rank} of "
                f"{world_size}: samples would be trained on twice or not at all. Leave out rank= and num_replicas=, "
                "and start the script with the trainer's launcher."
            )

    @property
    def replication(self) -> int | None:
        """How many ranks in a row get the same samples: None, every rank gets its own."""
        return None

    def activate(
        self, skip_list: SkipList | None, *, sample_ids: bool = False, file: Callable[[], bytes] | None = None
    ) -> None:
        """Make a skip-list the active one from the next epoch on; every rank calls it with the same list.

        Args:
            skip_list: drops its pruned samples; ``None`` drops nothing. Weights are for whoever computes the loss.
            sample_ids: no matter here: samples stay as they are, and :meth:`ids_of_batch` tells the ids.
            file: no matter here: no other process reads the list.

        Raises:
            SkipListError: if the list belongs to another dataset.
            ValueError: if too few samples remain.
        """
        del sample_ids, file
        if skip_list is not None:
            skip_list = skip_list.aligned_to(self.layout).without_weights()
        kept = self.full_epoch_size if skip_list is None else skip_list.num_kept
        if kept < self.fewest_samples:
            raise ValueError(
                f"{kept} samples are to be kept, but it takes {self.fewest_samples} to give each of "
                f"{self.num_replicas} ranks one with drop_last={self.drop_last}. Prune less."
            )
        self.num_samples = self.samples_of_rank(kept)
        self.total_size = self.num_samples * self.num_replicas
        self._active = skip_list
        self._plan: tuple[int, NDArray[np.signedinteger]] | None = None  # of the epoch that was planned last

    def _planned(self) -> NDArray[np.signedinteger]:
        """The ids that this rank yields in the current epoch, in order: int32 or int64, shape (num_samples,)."""
        if self._plan is None or self._plan[0] != self.epoch:
            self._plan = None  # or it would live while the next one is made
            self._plan = self.epoch, self._own_ids()
        return self._plan[1]

    def _own_ids(self) -> NDArray[np.signedinteger]:
        kept = self.full_epoch_size if self._active is None else self._active.num_kept
        small = self.full_epoch_size <= np.iinfo(np.int32).max
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(self.seed + self.epoch)
            # The permutation does not hang on the type of its numbers.
            dtype = torch.int32 if small else torch.int64
            order = torch.randperm(kept, generator=generator, dtype=dtype).numpy()
        else:
            order = np.arange(kept, dtype=np.int32 if small else np.int64)
        ids = np.ascontiguousarray(order[self.rank : self.total_size : self.num_replicas])
        if len(ids) < self.num_samples:  # by the one that lies beyond the end, where the order starts again
            ids = np.append(ids, order[(self.rank + len(ids) * self.num_replicas) % kept])
        del order
        if self._active is not None:
            kept_ids = self._active.kept_ids(ids.dtype)
            for start in range(0, len(ids), BLOCK_SIZE):  # in place and in pieces: indexing takes 8 bytes per index
                piece = ids[start : start + BLOCK_SIZE]
                piece[:] = kept_ids[piece]
        return ids

    def skip(self, samples: int) -> None:
        """Let the next iteration begin after so many of this rank's samples: those that a resumed run has seen."""
        self._skipped = samples

    def __iter__(self) -> Iterator[int]:
        """This rank's ids in the current epoch, as Python integers; those of SeededSamples bring seed and epoch."""
        ids, self._skipped = self._planned()[self._skipped :], 0
        # In pieces, since 10^8 Python integers at once take 3 GB.
        each = chain.from_iterable(ids[start : start + BLOCK_SIZE].tolist() for start in range(0, len(ids), BLOCK_SIZE))
        return self.indices(each)

    def indices(self, ids: Iterable[int]) -> Iterator[int]:
        """The indices by which a DataLoader reads these samples in the current epoch."""
        if self.seed_samples:
            return map(partial(SeededIndex, seed=self.seed, epoch=self.epoch), ids)
        return iter(ids)

    def ids_of_batch(self, batch: int, batch_size: int) -> NDArray[np.int64]:
        """The ids in one of this rank's batches of the current epoch, however far a DataLoader has read ahead.

        Args:
            batch: its number within the epoch, from 0.
            batch_size: of the DataLoader.

        Returns:
            int64, shape (batch_size,); fewer in the last batch.
        """
        return self._planned()[batch * batch_size : (batch + 1) * batch_size].astype(np.int64)


def _of_launcher(variable: str, *, otherwise: int) -> int:
    """A whole number from the launcher's environment, ``otherwise`` where it is not set."""
    text = os.environ.get(variable)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise ValueError(
            f"The environment variable {variable} is {text!r}, not a whole number from 0 on, so this process's share "
            "of the samples is unknown. Let the launcher set it, unset it, or pass num_replicas and rank."
        )
    return int(text)


def _layout(name: str, num_samples: int) -> DatasetLayout:
    shards = []
    for first in range(0, num_samples, BLOCK_SIZE):
        last = min(first + BLOCK_SIZE, num_samples) - 1
        shards.append(ShardLayout(name=f"{name}/{first:012}-{last:012}", size=0, samples=last - first + 1))
    return DatasetLayout(streams=(StreamLayout(shards=tuple(shards)),))
