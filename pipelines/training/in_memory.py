"""Prepared images that are held on the device: a batch is a gather instead of a read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from streaming import LocalDataset
from torch import Tensor
from torch.utils.data import Dataset

from ted_stream.reading.dataset import stream_layout
from ted_stream.skip_list import DatasetLayout

from .image_batches import ImageTransform

__all__ = ["FromMemory", "ImagesInMemory"]


class ImagesInMemory(Dataset):
    """A split of decoded images, as (id, label); the pixels are in :attr:`images`.

    Args:
        local: folder of the split's shards.

    Attributes:
        images: (N, H, W) or (N, H, W, C) uint8, in the order of the shards.
        labels: the class of each.
        layout: of the shards.
    """

    def __init__(self, local: str) -> None:
        shards: Any = LocalDataset(local)
        samples = [shards[at] for at in range(len(shards))]
        self.images = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
        self.labels = [int(sample["label"]) for sample in samples]
        self.layout = DatasetLayout(streams=(stream_layout(shards.shards),))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample_id: int) -> tuple[int, int]:
        return sample_id, self.labels[sample_id]


class FromMemory:
    """Puts the images of a batch's ids in their place, and transforms them.

    Args:
        data: that has them.
        transform: of images.
    """

    def __init__(self, data: ImagesInMemory, transform: ImageTransform) -> None:
        self.images, self.transform = data.images, transform

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        """Transform a batch whose first element is (B,) int64 ids.

        Returns:
            The same batch with (B, C, H, W) float32 in front, on the device of the ids.
        """
        ids, *others = batch
        if self.images.device != ids.device:
            self.images = self.images.to(ids.device)
        found: Tensor = self.images[ids]
        return self.transform([found, *others])
