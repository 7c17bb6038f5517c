"""Where a shard keeps the offsets of its samples, so that single samples can be read, and fetched, by byte range."""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.format.mds.reader import MDSReader

from ted_stream.reading.tar_shards import TarReader, parse_offsets

__all__ = ["Head", "head_of"]


@dataclass(frozen=True)
class Head:
    """The part of a shard that tells where its samples are.

    It has no reader: readers read through what has a head, and what they are part of would end with a collection of
    garbage alone.

    Attributes:
        folder: where the shard's files are, once they are local.
        samples: of the shard.
        data: the file of the samples.
        file: the file that holds the offsets: the same, or one beside a tar.
        size: the offsets lie in this many first bytes of it.
    """

    folder: str
    samples: int
    data: FileInfo
    file: FileInfo
    size: int

    @property
    def data_path(self) -> str:
        """Where the samples are, once they are local."""
        return os.path.join(self.folder, self.data.basename)

    @property
    def file_path(self) -> str:
        """Where the offsets are, once they are local."""
        return os.path.join(self.folder, self.file.basename)

    def parse(self, head: bytes) -> NDArray[np.int64]:
        """(samples + 1,) int64: sample i is the bytes [offsets[i], offsets[i + 1]) of the data file.

        Raises:
            ValueError: if the bytes are no such table.
        """
        if self.file is not self.data:
            return parse_offsets(head, samples=self.samples, tar=self.data, file=self.file)
        table = np.frombuffer(head, "<u4").astype(np.int64)
        samples, offsets = table[0], table[1:]
        bounds = np.concatenate(([self.size], offsets, [self.data.bytes]))
        if samples != self.samples or (np.diff(bounds) < 0).any():
            raise ValueError(
                f"The shard {self.data.basename} does not begin with the offsets of {self.samples} samples in "
                f"{self.data.bytes} bytes, as its index says: it is damaged or belongs to another index. Restore it, "
                "or delete it where it is a cached copy."
            )
        return offsets


def head_of(shard: Reader) -> Head | None:
    """The head of a shard, or ``None`` if its format has none (JSON, CSV, a reader of somebody's own)."""
    folder = os.path.join(shard.dirname, shard.split)
    if isinstance(shard, TarReader):
        return Head(folder, shard.samples, shard.raw_data, shard.raw_meta, shard.raw_meta.bytes)
    if isinstance(shard, MDSReader) and type(shard).get_sample_data is MDSReader.get_sample_data:
        return Head(folder, shard.samples, shard.raw_data, shard.raw_data, 4 * (2 + shard.samples))
    return None
