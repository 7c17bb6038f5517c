"""Folders as runs leave them, without the runs; and what they kept, by other means than ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyroaring import BitMap

from ted_stream.export.run_files import list_name, running_scores_to_bytes
from ted_stream.files import join, write_bytes
from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout, to_bytes


def layout_of(*shards: int) -> DatasetLayout:
    """One stream of shards of so many samples."""
    parts = tuple(ShardLayout(name=f"s{at}", size=100 * count, samples=count) for at, count in enumerate(shards))
    return DatasetLayout(streams=(StreamLayout(shards=parts),))


def write_run(
    folder: str | Path,
    layout: DatasetLayout,
    masks: list[NDArray[np.bool_]],
    *,
    scores: NDArray[np.float32] | None = None,
    weights: list[NDArray[np.float32] | None] | None = None,
    finished: bool = True,
) -> None:
    """A folder of a run whose epochs kept what the masks (N,) say; scores (N,), NaN where unknown."""
    epochs: list[dict[str, Any]] = []
    for epoch, mask in enumerate(masks):
        skip_list = SkipList.from_keep_mask(
            layout,
            mask,
            epoch=epoch,
            keep_ratio=float(mask.mean()),
            method="TED",
            run="r",
            weights=weights[epoch] if weights else None,
        )
        write_bytes(join(folder, list_name(epoch)), to_bytes(skip_list))
        returning = int((mask & ~masks[epoch - 1]).sum()) if epoch else 0
        record = {"epoch": epoch, "keep_ratio": skip_list.keep_ratio, "kept": int(mask.sum()), "returning": returning}
        epochs.append({**record, "skip_list": list_name(epoch), "digest": skip_list.digest})
    run = {"method": "TED", "settings": "TED(0.5)", "run": "r", "dataset": layout.fingerprint}
    run |= {"samples": layout.num_samples, "epochs": epochs}
    write_bytes(join(folder, "run.json"), json.dumps({**run, "finished": finished}).encode())
    if scores is not None:
        data = running_scores_to_bytes(scores, epoch=len(masks) - 1, layout=layout)
        write_bytes(join(folder, "running_scores.parquet"), data)


def random_masks(samples: int, epochs: int, seed: int = 0) -> list[NDArray[np.bool_]]:
    """All samples in epoch 0, then about half of them."""
    rng = np.random.default_rng(seed)
    return [np.ones(samples, np.bool_), *(rng.random(samples) < 0.5 for _ in range(epochs - 1))]


def kept_by_list(path: str | Path) -> list[tuple[str, str, int]]:
    """Stream, shard and position of what a skip-list's file keeps, read without this package."""
    kept = []
    for row in pq.read_table(path).to_pylist():
        pruned = set(BitMap.deserialize(row["pruned"]))
        kept += [(row["stream"], row["shard"], at) for at in range(row["samples"]) if at not in pruned]
    return kept
