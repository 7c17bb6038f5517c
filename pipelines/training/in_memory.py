"""Prepared images that are held on the device: a batch is a gather instead of a read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ted_stream.skip_list import DatasetLayout

from ..corpora.images import read_images
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
        images, labels, layout = read_images(local)
        self.images = torch.from_numpy(images)
        self.labels = labels.tolist()
        self.layout = DatasetLayout(streams=(layout,))

    def on(self, device: torch.device) -> Tensor:
        """The images, which stay on the device that they were last asked for on."""
        if self.images.device != device:
            self.images = self.images.to(device)
        return self.images

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
        self.data, self.transform = data, transform

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        """Transform a batch whose first element is (B,) int64 ids.

        Returns:
            The same batch with (B, C, H, W) float32 in front, on the device of the ids.
        """
        ids, *others = batch
        return self.transform([self.data.on(ids.device)[ids], *others])
