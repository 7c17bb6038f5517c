"""Which samples a node needs in an epoch, of the shards whose samples can be fetched one by one."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.files import write_bytes

__all__ = ["NeededSamples"]


class NeededSamples:
    """Tells a node's processes what they need of a shard, by a file that the one writes that plans the epoch.

    Args:
        path: of the file: a bit per sample of the dataset.
        by_ranges: (shards,) bool: whose single samples can be fetched. The others come whole, whatever is needed.
        samples_per_shard: (shards,) int64.

    Attributes:
        by_ranges: as given.
    """

    def __init__(self, path: Path, by_ranges: NDArray[np.bool_], samples_per_shard: NDArray[np.int64]) -> None:
        self._path, self.by_ranges = path, by_ranges
        self._stops = np.cumsum(samples_per_shard)
        self._starts = self._stops - samples_per_shard
        self._bits: NDArray[np.uint8] | None = None  # a map of the file, while an epoch is planned

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_bits": None}

    @property
    def matter(self) -> bool:
        """Whether it makes a difference to any shard which samples are needed."""
        return bool(self.by_ranges.any())

    def publish(self, sample_ids: NDArray[np.int64]) -> None:
        """Write down what the node needs.

        Args:
            sample_ids: of the node, (ranks, workers, batches, samples of a batch); -1 pads.
        """
        mask = np.zeros(int(self._stops[-1]) + 1, np.bool_)  # the last for -1
        for rank in sample_ids:
            for worker in rank:
                mask[worker] = True
        write_bytes(self._path, np.packbits(mask[:-1]).tobytes())

    def look_up(self) -> None:
        """Take note of what was written."""
        self._bits = np.memmap(self._path, np.uint8, "r")

    def forget(self) -> None:
        """Need all of every shard, as outside of an epoch."""
        self._bits = None

    def of(self, shard_id: int) -> NDArray[np.int64] | None:
        """Ascending positions that are needed of a shard; ``None``, for all, of one that the epoch leaves out."""
        if self._bits is None or not self.by_ranges[shard_id]:
            return None
        start, stop = int(self._starts[shard_id]), int(self._stops[shard_id])
        first, shift = divmod(start, 8)
        bits = np.unpackbits(self._bits[first : -(-stop // 8)], count=shift + stop - start)[shift:]
        positions = np.flatnonzero(bits)
        return positions if len(positions) else None
