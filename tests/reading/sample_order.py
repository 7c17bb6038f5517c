"""Iterates stock and prunable datasets side by side, on any number of ranks: run by test_sample_order.py."""

import itertools
import json
import os
import sys
import warnings
from typing import Any

import numpy as np
import torch.distributed as dist
from streaming import StreamingDataset
from streaming.base.shuffle import algos
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset, SkipList

ALGORITHMS = tuple(algos)
WORKERS = (0, 2)
BATCH_SIZE = 8
CANONICAL_NODES = 2


def ids_of(dataset: StreamingDataset, workers: int, epochs: int = 2) -> list[list[int]]:
    loader = DataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0, collate_fn=list
    )
    return [[sample["id"] for batch in loader for sample in batch] for _ in range(epochs)]


def main() -> None:
    folder, out = sys.argv[1:]
    warnings.simplefilter("ignore")
    if (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
    ):  # or every dataset would, and end it: at one address, one so soon after another can fail
        dist.init_process_group("gloo")
    everything, pruned = {}, {}
    for algorithm, workers in itertools.product(ALGORITHMS, WORKERS):
        arguments: dict[str, Any] = {
            "local": folder,
            "shuffle": True,
            "shuffle_algo": algorithm,
            "shuffle_block_size": 64,
            "batch_size": BATCH_SIZE,
            "num_canonical_nodes": CANONICAL_NODES,
        }
        stock = ids_of(StreamingDataset(**arguments), workers)
        ours = PrunedStreamingDataset(**arguments)
        layout = ours.layout
        nothing = SkipList.from_pruned_ids(
            layout, np.empty(0, np.int64), epoch=0, keep_ratio=1.0, method="none", run="test"
        )
        everything[f"{algorithm}/{workers}"] = {
            "stock": stock,
            "no list": ids_of(ours, workers),
            "empty list": ids_of(PrunedStreamingDataset(**arguments, skip_list=nothing), workers),
        }
        # A whole shard, most of another, and every third sample are pruned.
        drop = np.union1d(np.arange(0, layout.num_samples, 3), np.arange(50, 140))
        some = SkipList.from_pruned_ids(layout, drop, epoch=0, keep_ratio=0.5, method="test", run="test")
        subset = PrunedStreamingDataset(**arguments, skip_list=some)
        pruned[f"{algorithm}/{workers}"] = {
            "kept": some.kept_ids().tolist(),
            "len": len(subset),
            "ids": ids_of(subset, workers),
        }
    rank = os.environ.get("RANK", "0")
    with open(f"{out}/rank{rank}.json", "w") as file:
        json.dump({"everything": everything, "pruned": pruned}, file)
    if dist.is_initialized():
        dist.barrier()
        os._exit(0)  # gloo's thread can hold up the group's end for ever


if __name__ == "__main__":
    main()
