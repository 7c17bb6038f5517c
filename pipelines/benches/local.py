"""Samples per second read from a local folder, by stock streaming and by ours."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from torch import Tensor
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset

from .fresh import call_in_fresh_process

__all__ = ["KINDS", "Row", "bench_local", "write_samples"]

BATCH_SIZE = 128

_CLASSES = {"stock": StreamingDataset, "ours": PrunedStreamingDataset}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one kind of sample, read one way.

    Args:
        kind: key of ``KINDS``.
        workers: of the loader; ``None``: the dataset is iterated without one.
        samples: of the dataset.
        sample_bytes: of a shard file per sample.
        stock: samples per second of every repeat.
        ours: the same.
    """

    kind: str
    workers: int | None
    samples: int
    sample_bytes: int
    stock: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """Median over the repeats of our samples per second over stock's in the same repeat."""
        return median(ours / stock for ours, stock in zip(self.ours, self.stock, strict=True))


def bench_local(kind: str, samples: int, *, repeats: int) -> list[Row]:
    """Read a dataset through once per measurement, shuffled, stock and ours in turns, each in a fresh process.

    The files are in the page cache. A sample counts once it is decoded and, with a loader, in a batch.

    Args:
        kind: key of ``KINDS``.
        samples: of the dataset.
        repeats: measurements of each.

    Returns:
        The row of the dataset alone, then the row of a loader with one worker.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_samples(folder, kind, samples)
        sample_bytes = sum(shard.stat().st_size for shard in Path(folder).glob("*.mds")) // samples
        rows = [
            Row(kind=kind, workers=workers, samples=samples, sample_bytes=sample_bytes, stock=[], ours=[])
            for workers in (None, 1)
        ]
        for _ in range(repeats):
            for row in rows:
                row.stock.append(call_in_fresh_process(_read, "stock", folder, samples, row.workers))
                row.ours.append(call_in_fresh_process(_read, "ours", folder, samples, row.workers))
    return rows


# Samples -----------------------------------------------------------------------------------------------------------


def _raw() -> Iterator[np.ndarray]:
    """Arrays like CIFAR-10's, of 3,072 bytes."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(256, size=(32, 32, 3), dtype=np.uint8)


def _jpeg() -> Iterator[Image.Image]:
    """Blots with grain, of about 100 KB as JPEG. One hundred, over and over."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(100):
        blots = Image.fromarray(rng.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((640, 480))
        grain = rng.normal(0, 17, (480, 640, 1))
        images.append(Image.fromarray(np.clip(np.asarray(blots) + grain, 0, 255).astype(np.uint8)))
    while True:
        yield from images


KINDS = {"raw": _raw, "jpeg": _jpeg}
_COLUMNS = {
    "raw": {"x": "ndarray:uint8:32,32,3", "y": "int"},
    "jpeg": {"x": "jpeg", "y": "int"},
}


def write_samples(folder: str, kind: str, samples: int) -> None:
    """Write a dataset of so many samples of a kind: ``x`` and its number, ``y``."""
    with MDSWriter(out=folder, columns=_COLUMNS[kind]) as writer:
        for index, x in zip(range(samples), KINDS[kind](), strict=False):
            writer.write({"x": x, "y": index})


# In a process of its own -------------------------------------------------------------------------------------------


def _read(whose: str, folder: str, samples: int, workers: int | None) -> float:
    """Samples per second of an epoch, from asking for the iterator to the last sample."""
    for shard in Path(folder).glob("*.mds"):
        shard.read_bytes()  # into the page cache
    dataset = _CLASSES[whose](local=folder, batch_size=BATCH_SIZE, shuffle=True)
    seen = np.zeros(samples, np.int64)
    start = time.perf_counter()
    if workers is None:
        for sample in dataset:
            _decode(sample["x"])
            seen[sample["y"]] += 1
    else:
        for _, ids in DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_collate):
            np.add.at(seen, ids.numpy(), 1)
    seconds = time.perf_counter() - start
    if (seen != 1).any():
        raise RuntimeError(f"{np.count_nonzero(seen != 1)} of {samples} samples were not read once: reading is broken.")
    return samples / seconds


def _decode(x: np.ndarray | Image.Image) -> None:
    if isinstance(x, Image.Image):
        x.load()  # streaming opens an image without decoding it


def _collate(samples: Sequence[dict[str, Any]]) -> tuple[Tensor | None, Tensor]:
    """Arrays as one tensor, images decoded and left behind: a training loader would crop them first."""
    xs, ids = zip(*(sample.values() for sample in samples), strict=True)
    if isinstance(xs[0], np.ndarray):
        return torch.from_numpy(np.stack(xs)), torch.tensor(ids)
    for x in xs:
        _decode(x)
    return None, torch.tensor(ids)
