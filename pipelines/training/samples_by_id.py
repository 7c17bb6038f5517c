"""The training split read by ids instead of in an order of training: without augmentation, as for testing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ted_stream.engine.generators import preserved_generators

from .loop_host import Host

__all__ = ["SamplesById"]


class _ByIds(Dataset):
    """Samples of a streaming dataset, which a loader would otherwise iterate over."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, sample_id: int) -> Any:
        return self.data[sample_id]


@dataclass(frozen=True)
class _Batches:
    """The ids of batches as a loader takes them, made as they are asked for."""

    parts: Iterable[NDArray[np.int64]]

    def __iter__(self) -> Iterator[list[int]]:
        return (part.tolist() for part in self.parts)


class SamplesById:
    """Batches of samples that are named by their ids, for a host's network.

    Args:
        host: whose training split is read, by as many workers as it has for training.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._data: Any = host.loaders.train_set

    def batches(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[Any]:
        """A batch on the device for each part, as the network takes it; within :meth:`evaluating`.

        Args:
            parts: (n,) int64 ids of each batch.
        """
        loaders = self.host.loaders
        train: Any = loaders.train
        loader = DataLoader(
            _ByIds(self._data),
            batch_sampler=_Batches(parts),
            num_workers=train.num_workers,
            multiprocessing_context=train.multiprocessing_context,
            pin_memory=train.pin_memory,
            collate_fn=train.collate_fn,
            generator=torch.Generator(),
        )
        for batch in loader:
            yield loaders.plain_transform(self.host.on_device(batch))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network in evaluation mode, samples decoded as for testing, and training's generators left alone."""
        self.host.network.eval()
        augmenting = getattr(self._data, "decode", None)
        testing: Any = self.host.loaders.test.dataset
        with preserved_generators():
            try:
                if augmenting is not None:
                    self._data.decode = testing.dataset.decode
                yield
            finally:
                if augmenting is not None:
                    self._data.decode = augmenting
