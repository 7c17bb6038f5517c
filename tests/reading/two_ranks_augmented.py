"""Augments images on the ranks it is launched on: run by test_augmentation.py, which shares what is defined here."""

import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torchvision.transforms import ColorJitter, Compose, RandomHorizontalFlip, RandomResizedCrop

from ted_stream import PrunedStreamingDataset

BATCH_SIZE = 8  # of all ranks
AUGMENT = Compose([RandomResizedCrop(6), RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1)])


class Images(PrunedStreamingDataset):
    """(id, pixels) of tars, augmented by a __getitem__ of its own."""

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        pixels = np.asarray(AUGMENT(sample["png"]), np.float32)
        return sample["json"]["id"], pixels + np.random.standard_normal(pixels.shape) * random.random()


def make_dataset(folder: Path, ranks: int = 1) -> Images:
    return Images(
        local=str(folder), batch_size=BATCH_SIZE // ranks, shuffle=True, num_canonical_nodes=1, seed_samples=True
    )


def read(dataset: Images, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=dataset.batch_size,
        collate_fn=list,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def by_id(batches: Iterable[Any]) -> dict[int, bytes]:
    return {index: pixels.tobytes() for batch in batches for index, pixels in batch}


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    found = {}
    for workers in (0, 1):
        dataset = make_dataset(folder, ranks)
        state = torch.load(out / "state.pt")
        dist.barrier()
        dataset.load_state_dict(state)
        dist.barrier()
        found[workers] = by_id(read(dataset, workers))
    torch.save(found, out / f"rank{rank}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # destroying the group may wait for ever for gloo's thread


if __name__ == "__main__":
    main()
