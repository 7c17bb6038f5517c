"""Where a shard keeps the offsets of its samples, so that single samples can be read, and fetched, by byte range."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.format.mds.reader import MDSReader

from ted_stream.reading.tar_shards import TarReader

__all__ = ["Head", "head_of"]


@dataclass(frozen=True)
class Head:
    """The part of a shard that tells where its samples are.

    Attributes:
        shard: its reader.
        data: the file of the samples.
        file: the file that holds the offsets: the same, or one beside it.
        size: the offsets lie in this many first bytes of it.
    """

    shard: MDSReader | TarReader
    data: FileInfo
    file: FileInfo
    size: int

    def parse(self, head: bytes) -> NDArray[np.int64]:
        """(samples + 1,) int64: sample i is the bytes [offsets[i], offsets[i + 1]) of the data file.

        Raises:
            ValueError: if the bytes are no such table.
        """
        if isinstance(self.shard, TarReader):
            return self.shard.parse_offsets(head)
        table = np.frombuffer(head, "<u4").astype(np.int64)
        samples, offsets = table[0], table[1:]
        bounds = np.concatenate(([self.size], offsets, [self.data.bytes]))
        if samples != self.shard.samples or (np.diff(bounds) < 0).any():
            raise ValueError(
                f"The shard {self.data.basename} does not begin with the offsets of {self.shard.samples} samples in "
                f"{self.data.bytes} bytes, as its index says: it is damaged or belongs to another index. Restore it, "
                "or delete it where it is a cached copy."
            )
        return offsets


def head_of(shard: Reader) -> Head | None:
    """The head of a shard, or ``None`` if its format has none (JSON, CSV, a reader of somebody's own)."""
    if isinstance(shard, TarReader):
        return Head(shard, shard.raw_data, shard.raw_meta, shard.raw_meta.bytes)
    if isinstance(shard, MDSReader) and type(shard).get_sample_data is MDSReader.get_sample_data:
        return Head(shard, shard.raw_data, shard.raw_data, 4 * (2 + shard.samples))
    return None
