"""Skip-lists that keep samples by chance, for measuring how they are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ted_stream import SkipList, write_skip_list
from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout

__all__ = ["write_random_list"]


def write_random_list(path: str, dataset: str, keep_ratio: float, seed: int) -> NDArray[np.bool_]:
    """Write a skip-list that keeps every sample with the same probability, and return its mask over the ids.

    Args:
        path: of the skip-list.
        dataset: the folder of an MDS dataset with sha1 hashes; only its index is read.
        keep_ratio: the probability, in [0, 1].
        seed: of the choice.
    """
    shards = json.loads(Path(dataset, "index.json").read_text())["shards"]
    files = [shard["raw_data"] for shard in shards]
    layouts = (
        ShardLayout(
            name=file["basename"],
            size=file["bytes"],
            samples=shard["samples"],
            content=f"sha1:{file['hashes']['sha1']}",
        )
        for shard, file in zip(shards, files, strict=True)
    )
    layout = DatasetLayout(streams=(StreamLayout(shards=tuple(layouts)),))
    keep = np.random.default_rng(seed).random(layout.num_samples, np.float32) < keep_ratio
    skip_list = SkipList.from_keep_bits(
        layout, np.packbits(keep), epoch=0, keep_ratio=keep_ratio, method="random", run="bench"
    )
    write_skip_list(skip_list, path)
    return keep
