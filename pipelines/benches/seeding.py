"""What random states for every sample cost: processor time of reading with them, beside reading without."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from ted_stream import PrunedStreamingDataset

from .local import write_samples

__all__ = ["AUGMENTED", "Row", "bench_seeding"]

BATCH_SIZE = 20


def _augmentation(size: int) -> Callable[[Any], Any]:
    crop = v2.RandomResizedCrop(size)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])


# Kind of local samples, and side of what augmentation makes of them.
AUGMENTED: dict[str, tuple[str, int | None]] = {
    "arrays of 3 KB": ("raw", None),
    "arrays of 3 KB, augmented": ("raw", 32),
    "JPEGs of 100 KB, augmented": ("jpeg", 224),
}


class _Images(PrunedStreamingDataset):
    """Pixels, augmented if there is something to do that."""

    augment: Callable[[Any], Any] | None = None

    def __getitem__(self, at: Any) -> Any:
        image = super().__getitem__(at)["x"]
        if self.augment is None:
            return image
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        return np.array(self.augment(image))


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one kind of samples, read one way.

    Args:
        kind: key of ``AUGMENTED``.
        workers: of the loader; 0: samples are read in the main process, whose states are put back.
        samples: of an epoch.
        plain: microseconds of the reading process per sample, of every round.
        seeded: the same, with states for every sample.
    """

    kind: str
    workers: int
    samples: int
    plain: list[float]
    seeded: list[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds of the time with states over that without."""
        return median(seeded / plain for plain, seeded in zip(self.plain, self.seeded, strict=True))


def bench_seeding(kind: str, samples: int, *, rounds: int, workers: Sequence[int] = (0, 1)) -> list[Row]:
    """Read a dataset through without and with states for every sample, in turns, in one process.

    The files are in the page cache. Workers live on between the rounds. What counts is the processor time of the
    process that reads, from an epoch's first batch to its last, so that what else a machine does matters less.

    Args:
        kind: key of ``AUGMENTED``.
        samples: of the dataset.
        rounds: epochs of each.
        workers: of the loaders.

    Returns:
        A row for each number of workers.
    """
    name, size = AUGMENTED[kind]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_samples(folder, name, samples)
        for number in workers:
            loaders = [_loader(folder, size, number, seeded) for seeded in (False, True)]
            for loader in loaders:
                _microseconds(loader)  # to start its workers
            row = Row(kind=kind, workers=number, samples=samples, plain=[], seeded=[])
            for _ in range(rounds):
                for loader, times in zip(loaders, (row.plain, row.seeded), strict=True):
                    times.append(_microseconds(loader))
            rows.append(row)
    return rows


def _loader(folder: str, size: int | None, workers: int, seeded: bool) -> DataLoader[Any]:
    dataset = _Images(local=folder, batch_size=BATCH_SIZE, shuffle=True, seed_samples=seeded)
    dataset.augment = None if size is None else _augmentation(size)
    return DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_collate,
    )


def _collate(images: Sequence[Any]) -> tuple[torch.Tensor, float]:
    """A batch, and what its process has used of the processor so far."""
    return torch.from_numpy(np.stack(images)), time.process_time()


def _microseconds(loader: DataLoader[Any]) -> float:
    """Per sample of an epoch, but of its first batch."""
    counts, times = zip(*((len(batch), used) for batch, used in loader), strict=True)
    return 1e6 * (times[-1] - times[0]) / sum(counts[1:])
