"""A StreamingDataset whose samples are augmented alike wherever, and whenever in an epoch, they are read."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.reading.shard_reading import ShardReading
from ted_stream.seeding import restore_states, seed_sample

__all__ = ["SampleSeeding"]


class SampleSeeding(ShardReading):
    """Calls ``__getitem__``, a subclass's own too, under random states of the sample's own while it is iterated over.

    See :func:`~ted_stream.seeding.seed_sample`. A sample that comes twice in an epoch (repeats of padding, streams with
    a proportion above 1) is augmented alike both times. Samples that are asked for by ``dataset[index]`` are in no
    epoch, and read under the states of the process.

    Args:
        seed_samples: whether torch's CPU generator, NumPy's and Python's global ones are seeded for every sample by
            (shuffle_seed, epoch, sample id): the same whatever the worker, the rank, the number of either, or where in
            an epoch a run begins. In the main process they are put back after every sample.
    """

    def __init__(self, *args: Any, seed_samples: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed_samples = seed_samples
        self._epoch = 0
        self._states_before: tuple[Any, ...] | None = None  # while a sample is being made

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        self._epoch = epoch
        return super()._get_work(epoch, sample_in_epoch)

    def _each_sample_id(self, it: Any) -> Iterator[int]:
        ids = super()._each_sample_id(it)
        return self._seeding(ids) if self.seed_samples else ids

    def _seeding(self, ids: Iterator[int]) -> Iterator[int]:
        for sample_id in ids:
            self._states_before = seed_sample(self.shuffle_seed, self._epoch, sample_id)
            yield sample_id  # with which streaming calls __getitem__ at once

    def __iter__(self) -> Iterator[Any]:
        """Iterate over this worker's samples."""
        samples = super().__iter__()
        return self._restoring(samples) if self.seed_samples else samples

    def _restoring(self, samples: Iterator[Any]) -> Iterator[Any]:
        try:
            for sample in samples:
                self._restore()
                yield sample
        finally:  # __getitem__ may have failed, or been interrupted
            self._restore()

    def _restore(self) -> None:
        before, self._states_before = self._states_before, None
        restore_states(before)
