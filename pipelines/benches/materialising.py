"""Copying what a run kept into a dataset of its own, beside a plain copy of the same files."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from streaming import MDSWriter

from ted_stream import read_skip_list
from ted_stream.export import materialise
from ted_stream.export.run_files import RUN_FILE, list_name, run_to_bytes
from ted_stream.files import write_bytes

from .fresh import call_in_fresh_process, peak_memory
from .random_lists import write_random_list

__all__ = ["Row", "bench_materialising"]

_SHARD_SIZE = 1 << 22
_SMALLEST, _LARGEST = 100, 200  # bytes of a sample's content


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements with a number of processes.

    Args:
        to: the format.
        workers: processes that copy.
        samples: of the dataset.
        kept: of them.
        shards: files that were written.
        written: bytes of these.
        seconds: of every repeat.
        plain: seconds of copying the files that were written, one after the other, to the disk.
        memory: most bytes of the process that was called, above what it holds with its imports; of all repeats.
    """

    to: str
    workers: int
    samples: int
    kept: int
    shards: int
    written: int
    seconds: list[float]
    plain: list[float]
    memory: int

    @property
    def ratio(self) -> float:
        """Median over the repeats of our seconds per second of the plain copy."""
        return median(ours / plain for ours, plain in zip(self.seconds, self.plain, strict=True))


def bench_materialising(
    samples: int, *, keep_ratio: float, to: str, workers: list[int], repeats: int, folder: Path | None = None
) -> list[Row]:
    """Write a dataset of small samples, and what a random list keeps of it, in turns with a plain copy.

    Each is done by a fresh process. The source is in the page cache; all that is written is flushed to the disk.

    Args:
        samples: of the dataset; of 100 to 200 bytes and a label each, in shards of 4 MiB.
        keep_ratio: share of them that is kept.
        to: the format, of `ted_stream.export.COPIES`.
        workers: numbers of processes.
        repeats: measurements of each.
        folder: for the files, ``None`` for that of temporary files.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        call_in_fresh_process(_write, place, samples, keep_ratio)
        return [_row(place, to, number, samples, repeats) for number in workers]


def _row(place: str, to: str, workers: int, samples: int, repeats: int) -> Row:
    seconds, plain, memory = [], [], 0
    done = (0, 0, 0)
    for _ in range(repeats):
        took, peak, done = call_in_fresh_process(_materialise, place, to, workers)
        seconds.append(took)
        memory = max(memory, peak)
        plain.append(call_in_fresh_process(_copy, f"{place}/kept", f"{place}/plain"))
        for name in ("kept", "plain"):
            shutil.rmtree(f"{place}/{name}")
    kept, shards, written = done
    return Row(
        to=to,
        workers=workers,
        samples=samples,
        kept=kept,
        shards=shards,
        written=written,
        seconds=seconds,
        plain=plain,
        memory=memory,
    )


# In a process of its own -------------------------------------------------------------------------------------------


def _write(place: str, samples: int, keep_ratio: float) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(_SMALLEST, _LARGEST + 1, samples).tolist()
    columns, hashes = {"x": "bytes", "y": "int"}, ["sha1"]
    with MDSWriter(out=f"{place}/data", columns=columns, hashes=hashes, size_limit=_SHARD_SIZE) as writer:
        for index, size in enumerate(sizes):
            writer.write({"x": rng.bytes(size), "y": index})
    run, path = f"{place}/run", f"{place}/run/{list_name(0)}"
    keep = write_random_list(path, f"{place}/data", keep_ratio, 0)
    skip_list = read_skip_list(path)
    record = {"epoch": 0, "kept": int(keep.sum()), "skip_list": list_name(0), "digest": skip_list.digest}
    told = {"method": "random", "settings": "", "run": "bench", "dataset": skip_list.layout.fingerprint}
    held = {**told, "samples": samples, "epochs": [record], "finished": True}
    write_bytes(f"{run}/{RUN_FILE}", run_to_bytes(held))


def _materialise(place: str, to: str, workers: int) -> tuple[float, int, tuple[int, int, int]]:
    """Seconds, bytes of memory, and kept samples, files and their bytes."""
    before, begun = peak_memory(), time.perf_counter()
    done = materialise(f"{place}/run", f"{place}/kept", to=to, dataset=f"{place}/data", workers=workers)
    seconds = time.perf_counter() - begun
    return seconds, peak_memory() - before, (done.kept, done.shards, done.bytes)


def _copy(source: str, target: str) -> float:
    begun = time.perf_counter()
    shutil.copytree(source, target)
    for path in Path(target).rglob("*"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
    return time.perf_counter() - begun
