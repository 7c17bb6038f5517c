"""Bytes, requests and seconds of an epoch read from object storage, pruned, beside all of it by stock streaming."""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset, read_skip_list

from .fresh import call_in_fresh_process
from .object_server import Link, ObjectServer
from .random_lists import write_random_list

__all__ = ["Epoch", "Row", "bench_streaming"]

BATCH_SIZE = 32

_SMALLEST, _LARGEST = 32_000, 200_000  # bytes of a sample
_BUCKET, _DATASET, _CHECKSUMS = "bench", "random", "crc32.npy"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, from an empty cache.

    Args:
        seconds: from asking for the iterator to the last batch.
        requests: that the server answered.
        sent: bytes of their bodies.
    """

    seconds: float
    requests: int
    sent: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """The epochs of one keep ratio.

    Args:
        keep_ratio: share of the samples that are kept; ``None``: stock streaming, which keeps all.
        samples: that are kept.
        kept: bytes of them in their shards.
        epochs: one of every repeat.
    """

    keep_ratio: float | None
    samples: int
    kept: int
    epochs: list[Epoch]

    def seconds_per(self, stock: Row) -> float:
        """Median over the repeats of the seconds per second of stock's epoch in the same repeat."""
        pairs = zip(self.epochs, stock.epochs, strict=True)
        return median(ours.seconds / theirs.seconds for ours, theirs in pairs)


def bench_streaming(
    size: int,
    *,
    keep_ratios: Sequence[float],
    link: Link,
    workers: int,
    repeats: int,
    shard_size: int = 1 << 26,
    seed: int = 0,
) -> list[Row]:
    """Read a dataset of random samples of 32 to 200 KB by stock streaming and, in turns, at every keep ratio.

    Every epoch begins with an empty cache, in a fresh process. All samples are compared with what was written.

    Args:
        size: bytes of all samples together.
        keep_ratios: shares of samples that a fixed random skip-list keeps, in (0, 1].
        link: between the server and the reading process.
        workers: of the loader.
        repeats: epochs of each.
        shard_size: at most, in bytes.
        seed: of sizes, contents and skip-lists.

    Returns:
        Stock streaming's row, then one per keep ratio.

    Raises:
        RuntimeError: if an epoch did not hold every kept sample once, whole.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = _write(folder, size, shard_size, seed)
        lists: list[str | None] = [None]
        rows = [Row(keep_ratio=None, samples=len(sizes), kept=int(sizes.sum()), epochs=[])]
        for keep_ratio in keep_ratios:
            path = f"{folder}/keep_{keep_ratio}.parquet"
            keep = write_random_list(path, _dataset(folder), keep_ratio, seed)
            lists.append(path)
            rows.append(Row(keep_ratio=keep_ratio, samples=int(keep.sum()), kept=int(sizes[keep].sum()), epochs=[]))
        with ObjectServer(folder, link) as server:
            for _ in range(repeats):
                for skip_list, row in zip(lists, rows, strict=True):
                    before = server.traffic
                    seconds = call_in_fresh_process(_read, folder, server.url, skip_list, workers)
                    passed = server.traffic - before
                    row.epochs.append(Epoch(seconds=seconds, requests=passed.requests, sent=passed.sent))
    return rows


def _dataset(folder: str) -> str:
    return f"{folder}/{_BUCKET}/{_DATASET}"


def _write(folder: str, size: int, shard_size: int, seed: int) -> NDArray[np.int64]:
    """Write the dataset and the checksums of its samples' contents; the bytes of every sample in its shard."""
    rng = np.random.default_rng(seed)
    sizes, checksums = [], []
    columns = {"bytes": "bytes", "id": "int"}
    with MDSWriter(out=_dataset(folder), columns=columns, size_limit=shard_size, hashes=["sha1"]) as writer:
        while sum(sizes) < size:
            content = rng.bytes(int(rng.integers(_SMALLEST, _LARGEST, endpoint=True)))
            sample = {"bytes": content, "id": len(sizes)}
            sizes.append(len(writer.encode_sample(sample)))
            checksums.append(zlib.crc32(content))
            writer.write(sample)
    np.save(f"{folder}/{_CHECKSUMS}", np.array(checksums, np.uint32))
    return np.array(sizes)


# In a process of its own -------------------------------------------------------------------------------------------


def _read(folder: str, endpoint: str, skip_list: str | None, workers: int) -> float:
    """Read an epoch into a new cache, check it, and return its seconds."""
    os.environ |= {
        "S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    checksums = np.load(f"{folder}/{_CHECKSUMS}").tolist()
    expected = np.ones(len(checksums), np.int64)
    with tempfile.TemporaryDirectory() as cache:
        arguments: dict[str, Any] = {
            "remote": f"s3://{_BUCKET}/{_DATASET}",
            "local": cache,
            "batch_size": BATCH_SIZE,
            "shuffle": True,
        }
        if skip_list is None:
            dataset = StreamingDataset(**arguments)
            for stream in dataset.streams:
                # Forked workers would all go on with the connection that brought the index, and take each other's
                # answers until they time out.
                stream._downloader.clean_up()
        else:
            dataset = PrunedStreamingDataset(**arguments, skip_list=skip_list)
            expected[read_skip_list(skip_list).pruned_ids()] = 0
        seen = np.zeros_like(expected)
        loader = DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_pairs)
        start = time.perf_counter()
        for batch in loader:
            for sample_id, content in batch:
                if zlib.crc32(content) != checksums[sample_id]:
                    raise RuntimeError(f"Sample {sample_id} is not what was written: reading is broken.")
                seen[sample_id] += 1
        seconds = time.perf_counter() - start
    if (seen != expected).any():
        raise RuntimeError(
            f"Of {expected.sum()} kept samples, {np.count_nonzero(seen[expected == 1] != 1)} were not read once, and "
            f"{np.count_nonzero(seen[expected == 0])} others were read: reading is broken."
        )
    return seconds


def _pairs(samples: list[dict[str, Any]]) -> list[tuple[int, bytes]]:
    return [(sample["id"], sample["bytes"]) for sample in samples]
