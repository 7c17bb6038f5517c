"""Time and memory of planning an epoch, by stock streaming and, with most samples pruned, by ours."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from streaming import StreamingDataset

from ted_stream import PrunedStreamingDataset

from .fresh import call_in_fresh_process, peak_memory
from .random_lists import write_random_list

__all__ = ["KEEP_RATIO", "Memory", "Times", "bench_planning_memory", "bench_planning_time"]

KEEP_RATIO = 0.3
BATCH_SIZE = 256

_SAMPLE_BYTES = 1000  # that the indices claim; no shard exists
_LARGE_SHARD = 50_000  # samples, where memory is measured


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds that planning took, by repeat.

    Args:
        stock: all samples.
        ours: those that a skip-list keeps.
    """

    stock: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """Median over the repeats of our seconds per second of stock in the same repeat."""
        return median(ours / stock for ours, stock in zip(self.ours, self.stock, strict=True))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes above what a process holds that has imported the libraries.

    Args:
        made: at the peak of making the dataset.
        planned: at the peak of that and of planning an epoch.
    """

    made: int
    planned: int


def bench_planning_time(samples: int, *, shards: int, repeats: int, seed: int = 0) -> Times:
    """Plan epochs of a dataset that has an index but no data, in one process, stock and ours in turns.

    Both shuffle by streaming's default algorithm. The first epoch of each is not timed.

    Args:
        samples: of the dataset.
        shards: that the samples are spread over.
        repeats: epochs of each.
        seed: of the skip-list, which keeps ``KEEP_RATIO``.
    """
    with tempfile.TemporaryDirectory() as folder:
        for dataset in ("stock", "ours"):  # streaming wants a folder for each
            _write_index(f"{folder}/{dataset}", samples, shards)
        return call_in_fresh_process(_times, folder, _list(folder, seed), repeats)


def bench_planning_memory(samples: int, *, pruned: bool, seed: int = 0) -> Memory:
    """Make such a dataset and plan one epoch, in a fresh process.

    Args:
        samples: of the dataset.
        pruned: ours with a skip-list, rather than stock.
        seed: of the skip-list, which keeps ``KEEP_RATIO``.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_index(f"{folder}/ours", samples, -(-samples // _LARGE_SHARD))
        return call_in_fresh_process(_memory, folder, _list(folder, seed) if pruned else None)


def _write_index(folder: str, samples: int, shards: int) -> None:
    entries = []
    for index in range(shards):
        held = (index + 1) * samples // shards - index * samples // shards
        raw = {"basename": f"shard.{index:05}.mds", "bytes": held * _SAMPLE_BYTES, "hashes": {"sha1": f"{index:040x}"}}
        entries.append(
            {
                "column_encodings": ["bytes"],
                "column_names": ["x"],
                "column_sizes": [None],
                "compression": None,
                "format": "mds",
                "hashes": [],
                "raw_data": raw,
                "samples": held,
                "size_limit": 1 << 26,
                "version": 2,
                "zip_data": None,
            }
        )
    Path(folder).mkdir()
    Path(folder, "index.json").write_text(json.dumps({"shards": entries, "version": 2}))


def _list(folder: str, seed: int) -> str:
    path = f"{folder}/keep.parquet"
    write_random_list(path, f"{folder}/ours", KEEP_RATIO, seed)
    return path


# In a process of its own -------------------------------------------------------------------------------------------


def _stock(folder: str) -> StreamingDataset:
    return StreamingDataset(local=folder, batch_size=BATCH_SIZE, shuffle=True)


def _ours(folder: str, skip_list: str) -> PrunedStreamingDataset:
    return PrunedStreamingDataset(local=folder, batch_size=BATCH_SIZE, shuffle=True, skip_list=skip_list)


def _plan(dataset: StreamingDataset) -> float:
    """Do what an iterator does before its first sample, and return the seconds."""
    dataset._unique_worker_world = dataset._unique_rank_world.detect_workers()
    dataset._parallel_worker_world = dataset._parallel_rank_world.detect_workers()
    start = time.perf_counter()
    dataset._get_work(*dataset._resume_incr_epoch())
    return time.perf_counter() - start


def _times(folder: str, skip_list: str, repeats: int) -> Times:
    stock, ours = _stock(f"{folder}/stock"), _ours(f"{folder}/ours", skip_list)
    pairs = [(_plan(stock), _plan(ours)) for _ in range(repeats + 1)]
    return Times(stock=[seconds for seconds, _ in pairs[1:]], ours=[seconds for _, seconds in pairs[1:]])


def _memory(folder: str, skip_list: str | None) -> Memory:
    before = peak_memory()
    folder = f"{folder}/ours"
    dataset = _stock(folder) if skip_list is None else _ours(folder, skip_list)
    made = peak_memory() - before
    _plan(dataset)
    return Memory(made=made, planned=peak_memory() - before)
