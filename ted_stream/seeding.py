"""Random states of single samples: what augmentation draws follows from the seed, the epoch and the sample's id.

Nobody can save the states inside DataLoader workers, so a run that goes on in the middle of an epoch would draw anew.
States that are made for every sample need not be saved.
"""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

__all__ = ["SeededIndex", "SeededSamples", "refuse_nested", "restore_states", "seed_sample"]


def seed_sample(seed: int, epoch: int, sample_id: int) -> tuple[Any, ...] | None:
    """Seed the global generators of torch (on the CPU), NumPy and Python for one sample of one epoch.

    ``torch.initial_seed()`` then is a seed for generators of one's own. In a worker the states are left as the sample
    leaves them, so what the collate function draws there follows from the batch's last sample. Keeping the states that
    were there would cost ten times as much as seeding, and nothing that is saved hangs on those of a worker.

    Args:
        seed: of the run.
        epoch: of the run.
        sample_id: of the sample.

    Returns:
        The states before, for :func:`restore_states`; ``None`` in a DataLoader's worker.
    """
    before = None
    if get_worker_info() is None:
        before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(f"{seed} {epoch} {sample_id}")  # by SHA-512, the same in every process
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed() goes to CUDA too
    return before


def restore_states(before: tuple[Any, ...] | None) -> None:
    """Put the generators back; where nothing was kept, leave them."""
    if before is not None:
        of_python, of_numpy, of_torch = before
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.default_generator.set_state(of_torch)


class SeededIndex(int):
    """An index that knows the seed and the epoch in which it is read, in whichever process.

    Attributes:
        seed: of the sampler.
        epoch: of the run.
    """

    seed: int
    epoch: int

    def __new__(cls, index: int, seed: int, epoch: int) -> "SeededIndex":
        """Take them along."""
        self = super().__new__(cls, index)
        self.seed, self.epoch = seed, epoch
        return self

    def __reduce__(self) -> Any:
        return SeededIndex, (int(self), self.seed, self.epoch)


class SeededSamples(Dataset):
    """A map-style dataset whose samples are read, and so augmented, under random states of their own.

    ::

        data = SeededSamples(dataset)
        loader = DataLoader(data, batch_size=64, sampler=PrunedSampler(data, seed=0), num_workers=8)

    Global generators are those of :func:`seed_sample`, by the sampler's seed and epoch and the sample's index: the same
    whatever the worker, the rank, the number of either, or where in an epoch a run begins. In the main process they
    are put back after every sample. The sampler must be made of this very dataset; in a DataLoader another one, which
    tells neither seed nor epoch, is refused. A look at ``data[index]`` is in no epoch, and reads the sample as ever.

    Args:
        dataset: with ``__len__`` and ``__getitem__``; its samples are read one by one.

    Attributes:
        dataset: the same.

    Raises:
        ValueError: if it is not map-style.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"A {type(dataset).__name__} is not a map-style dataset with __len__ and __getitem__, so its samples "
                "cannot be seeded one by one. For streaming data, pass PrunedStreamingDataset seed_samples=True."
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self.dataset[index]
        before = seed_sample(index.seed, index.epoch, int(index))
        try:
            return self.dataset[int(index)]
        finally:
            restore_states(before)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """A batch, as a DataLoader alone asks for it.

        Raises:
            ValueError: if its sampler tells no seed and epoch.
        """
        for index in indices:
            if not isinstance(index, SeededIndex):
                raise ValueError(
                    f"A DataLoader asks SeededSamples for sample {index} without a seed and an epoch, so what "
                    "augmentation draws would not follow from them. Pass it sampler=PrunedSampler(data), made of this "
                    "very SeededSamples; or, where no sample needs seeding (in evaluation), the dataset that is in it."
                )
        return [self[index] for index in indices]


def refuse_nested(dataset: Any) -> None:
    """Refuse a dataset around SeededSamples, which would not get the index that brings the seed and the epoch.

    Args:
        dataset: that a sampler chooses from; what it holds as an attribute, or in ``datasets``, is looked through.

    Raises:
        ValueError: saying what to change.
    """
    if isinstance(dataset, SeededSamples):
        return  # seeds all that is in it
    seen, left = {id(dataset)}, [dataset]
    while left:
        outer = left.pop()
        parts = getattr(outer, "datasets", ())
        held = [*getattr(outer, "__dict__", {}).values(), *(parts if isinstance(parts, (list, tuple)) else ())]
        for inner in held:
            if isinstance(inner, SeededSamples):
                raise ValueError(
                    f"There are SeededSamples within the {type(dataset).__name__}, which asks them for samples without "
                    "the seed and the epoch, so these would not be seeded. Put SeededSamples around it all: data = "
                    f"SeededSamples({type(dataset).__name__}(…)), and pass that to the PrunedSampler and the "
                    "DataLoader."
                )
            if isinstance(inner, Dataset) and id(inner) not in seen:
                seen.add(id(inner))
                left.append(inner)
