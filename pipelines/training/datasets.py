"""Prepared datasets as a run reads them: what a sample is, the loaders, and what the device does to a batch."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.forkserver import ensure_running
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from ted_stream import PrunedSampler, PrunedStreamingDataset
from ted_stream.engine import PrunableData, Ranks, deciding_data
from ted_stream.files import is_remote, join

from ..corpora.prepared import Description
from .image_batches import DecodeJpeg, ImageTransform
from .in_memory import FromMemory, ImagesInMemory
from .settings import Settings
from .text_batches import PaddingCollator

__all__ = ["JpegShards", "Loaders", "build_loaders"]

CROP_PADDING = 8  # of an image's side, one part in so many: 4 of 32


class ImageShards(PrunedStreamingDataset):
    """Prepared images as (image, label)."""

    def __getitem__(self, at: Any) -> Any:
        """The sample: a uint8 tensor of the stored shape, and its label."""
        sample = super().__getitem__(at)
        return torch.from_numpy(sample["image"].copy()), sample["label"]


class JpegShards(PrunedStreamingDataset):
    """Prepared JPEGs as (image, label)."""

    def __init__(self, *args: Any, decode: DecodeJpeg, **kwargs: Any) -> None:
        """Take the arguments of PrunedStreamingDataset and what makes pixels of a file's bytes."""
        super().__init__(*args, **kwargs)
        self.decode = decode

    def __getitem__(self, at: Any) -> Any:
        """The sample: a uint8 tensor (size, size, 3), and its label.

        Raises:
            ValueError: the image cannot be decoded.
        """
        sample = super().__getitem__(at)
        try:
            return self.decode(sample["image"]), sample["label"]
        except OSError as error:
            where = self.streams[0].local
            raise ValueError(f"sample {at} of {where} cannot be decoded ({error}); its file is damaged.") from error


DATASETS: dict[str, type[PrunedStreamingDataset]] = {
    "images": ImageShards,
    "jpeg": JpegShards,
    "instructions": PrunedStreamingDataset,
    "texts": PrunedStreamingDataset,
}
"""By kind of prepared dataset. Of the test set too, which is read by id: others may still be fetching its shards."""


def unchanged(batch: Any) -> Any:
    """The batch itself."""
    return batch


@dataclass(frozen=True)
class Loaders:
    """Where a run's batches come from, and what becomes of them on the device, microbatch by microbatch.

    Attributes:
        train: batches to train on.
        test: batches to test on.
        train_transform: of those to train on, augmentation included.
        plain_transform: of the same samples, without augmentation.
        test_transform: of those to test on.
    """

    train: DataLoader
    test: DataLoader
    train_transform: Callable[[Any], Any]
    plain_transform: Callable[[Any], Any]
    test_transform: Callable[[Any], Any]

    @property
    def train_set(self) -> Any:
        """What is trained on, sample by id."""
        return self.train.dataset

    @property
    def prunable(self) -> PrunableData:
        """What decides on the samples of an epoch."""
        return deciding_data(self.train)


def build_loaders(settings: Settings, description: Description, *, ranks: int) -> Loaders:
    """The loaders of this rank.

    Args:
        settings: of the run.
        description: of its dataset.
        ranks: that share every batch.
    """
    if settings.data.in_memory:
        return _in_memory(settings, description, ranks=ranks)
    data = settings.data
    remote = data.path if is_remote(data.path) else None
    local = data.path if remote is None else data.cache
    assert local is not None, "checked before"
    kind = DATASETS[description.kind]
    train_decodes, test_decodes = {}, {}
    if description.kind == "jpeg":
        assert data.image_size is not None, "checked before"
        train_decodes["decode"] = DecodeJpeg(
            data.image_size, augment=data.augment == "random_resized_crop", color_jitter=data.color_jitter
        )
        test_decodes["decode"] = DecodeJpeg(data.image_size, augment=False)
    train_set = kind(
        remote=remote and join(remote, "train"),
        local=join(local, "train"),
        batch_size=data.batch_size // ranks,
        shuffle=data.shuffle,
        shuffle_algo=data.shuffle_algo,
        shuffle_seed=settings.seed,
        num_canonical_nodes=data.num_canonical_nodes,
        skip_list=data.skip_list,
        seed_samples=data.augment == "random_resized_crop",  # drawn where samples are read
        **train_decodes,
    )
    test_set = kind(
        remote=remote and join(remote, "test"),
        local=join(local, "test"),
        batch_size=data.eval_batch_size // ranks,
        shuffle=False,
        **test_decodes,
    )
    is_text = description.kind in ("instructions", "texts")
    collate = PaddingCollator(description.pad_id) if is_text else None
    context = _worker_context(ranks) if data.num_workers else None

    def loader(dataset: Dataset, batch_size: int, **more: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size // ranks,
            num_workers=data.num_workers,
            persistent_workers=data.num_workers > 0,
            multiprocessing_context=context,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            **more,
        )

    by_id = Subset(test_set, _by_rank(test_set.num_samples, ranks))
    augmented, plain = (unchanged, unchanged) if is_text else _transforms(settings, description)
    return Loaders(
        loader(train_set, data.batch_size),
        loader(by_id, data.eval_batch_size, **_to_test(by_id, ranks)),
        augmented,
        plain,
        plain,
    )


def _by_rank(num_samples: int, ranks: int) -> list[int]:
    """The ids in an order that a sampler deals out in turn, so that each rank reads samples that follow each other."""
    order = np.empty(num_samples, np.int64)
    for rank, part in enumerate(np.array_split(np.arange(num_samples), ranks)):
        order[rank::ranks] = part
    return order.tolist()


def _to_test(dataset: Dataset, ranks: int) -> dict[str, Any]:
    """What a loader of a test set has: a sampler whose repeats, in the last batch, are known and not tested twice."""
    return {
        "sampler": DistributedSampler(dataset, ranks, Ranks().rank, shuffle=False),
        "generator": torch.Generator(),  # so that testing leaves training's draws alone
    }


def _worker_context(ranks: int) -> str | None:
    """How workers are started, if not as everywhere else.

    Before Python 3.12, a worker that is forked beside a process group's threads may never start (see
    `ted_stream.engine.forks`). A server has no such threads; it imports what workers need while the run is built.
    """
    if ranks == 1 or sys.version_info >= (3, 12) or multiprocessing.get_start_method() != "fork":
        return None
    multiprocessing.set_forkserver_preload([__name__])
    ensure_running()
    return "forkserver"


def _transforms(settings: Settings, description: Description) -> tuple[ImageTransform, ImageTransform]:
    """With augmentation, and without."""
    padding = description.shape[0] // CROP_PADDING if settings.data.augment == "crop_flip" else None
    channels_last = bool(settings.model.channels_last)
    transform = partial(ImageTransform, description.mean, description.std, channels_last=channels_last)
    return transform(padding=padding), transform(padding=None)


def _in_memory(settings: Settings, description: Description, *, ranks: int) -> Loaders:
    """Loaders of ids; their transforms take the images of a batch from the device's memory."""
    data = settings.data
    train_set, test_set = (ImagesInMemory(join(data.path, split)) for split in ("train", "test"))
    rank = Ranks().rank
    sampler = PrunedSampler(
        train_set,
        ranks,
        rank,
        shuffle=data.shuffle,
        seed=settings.seed,
        skip_list=data.skip_list,
        layout=train_set.layout,
    )
    augmented, plain = _transforms(settings, description)
    return Loaders(
        DataLoader(train_set, data.batch_size // ranks, sampler=sampler, drop_last=data.drop_last),
        DataLoader(test_set, data.eval_batch_size // ranks, **_to_test(test_set, ranks)),
        FromMemory(train_set, augmented),
        FromMemory(train_set, plain),
        FromMemory(test_set, plain),
    )
