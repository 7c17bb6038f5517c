"""A shard of which only some samples are on disk, shared by all processes of a node."""

import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ted_stream.files import write_bytes

__all__ = ["SPARSE_SUFFIXES", "SparseShard", "write_all"]

SPARSE_SUFFIXES = (".sparse", ".present")
_MAGIC = b"TEDSPRS1"
_HEADER = struct.Struct("<8sQQII")  # magic, bytes of the shard, samples, bytes of the head, CRC-32 of the head


class SparseShard:
    """Two files beside where the whole shard would be: its bytes with holes, and what of them is present.

    ``<shard>.sparse`` has the shard's size, and blocks on disk where samples were written. ``<shard>.present`` holds
    the shard's head (see :class:`~ted_stream.reading.heads.Head`) and a CRC-32 for every sample, 0 for one that is
    absent. A sample is there if its bytes have its checksum: whatever a crash left behind, no hole is ever taken for
    a sample.

    Any number of processes may read while one writes.
    """

    def __init__(self, path: str, head: bytes, offsets: NDArray[np.int64], data: int, present: int) -> None:
        self.path = path
        self.offsets = array("q", offsets.tobytes())
        self._first_checksum = _first_checksum(len(head))
        self._checksums = memoryview(mmap.mmap(present, 0))[self._first_checksum :].cast("I")
        self._data = data  # from here on its own, to be closed with it

    def __del__(self) -> None:
        if hasattr(self, "_data"):
            os.close(self._data)

    @classmethod
    def create(
        cls, path: str, head: bytes, *, size: int, samples: int, parse: Callable[[bytes], NDArray[np.int64]]
    ) -> "SparseShard":
        """Make the two files, without any sample.

        Args:
            path: of the whole shard.
            head: the shard's head.
            size: bytes of the shard's data file.
            samples: of the shard.
            parse: turns the head into the samples' (samples + 1,) int64 offsets.

        Raises:
            ValueError: if the head is not one.
            OSError: if the disk is full.
        """
        parse(head)
        for suffix in SPARSE_SUFFIXES:
            Path(path + suffix).unlink(missing_ok=True)
        with open(path + ".sparse", "wb") as data:
            data.truncate(size)
        header = _HEADER.pack(_MAGIC, size, samples, len(head), zlib.crc32(head))
        contents = (header + head).ljust(_first_checksum(len(head)), b"\0") + bytes(4 * samples)
        write_bytes(path + ".present", contents)
        shard = cls.open(path, size=size, samples=samples, parse=parse)
        assert shard is not None
        return shard

    @classmethod
    def open(
        cls, path: str, *, size: int, samples: int, parse: Callable[[bytes], NDArray[np.int64]]
    ) -> "SparseShard | None":
        """Open what is there; ``None`` if there is nothing, or nothing whole of this shard. Arguments as `create`."""
        data = present = -1
        try:
            data = os.open(path + ".sparse", os.O_RDWR)
            present = os.open(path + ".present", os.O_RDWR)
            contents = os.pread(present, os.fstat(present).st_size, 0)
            if len(contents) >= _HEADER.size and os.fstat(data).st_size == size:
                magic, found_size, found_samples, head_size, checksum = _HEADER.unpack_from(contents)
                head = contents[_HEADER.size : _HEADER.size + head_size]
                whole = len(contents) == _first_checksum(head_size) + 4 * found_samples
                if (magic, found_size, found_samples, whole) == (_MAGIC, size, samples, True) and (
                    zlib.crc32(head) == checksum
                ):
                    shard = cls(path, head, parse(head), data, present)
                    data = -1  # is the shard's to close
                    return shard
        except FileNotFoundError:
            pass
        finally:
            for descriptor in (data, present):
                if descriptor >= 0:
                    os.close(descriptor)
        return None

    def present(self) -> NDArray[np.bool_]:
        """(samples,) bool: which samples have been written."""
        return np.frombuffer(self._checksums, np.uint32) != 0

    def read(self, position: int) -> bytes | None:
        """A sample's bytes, or ``None`` if they are not there."""
        checksum = self._checksums[position]
        if not checksum:
            return None
        begin = self.offsets[position]
        data = os.pread(self._data, self.offsets[position + 1] - begin, begin)
        if _checksum(data) != checksum:
            # Lost in a crash, or the shard was evicted meanwhile. Whoever prepares the shard next sees it missing.
            self._checksums[position] = 0
            return None
        return data

    def write(self, first: int, stop: int, data: bytes) -> None:
        """Write the samples [first, stop): ``data`` is their bytes, one after the other.

        Raises:
            OSError: if the disk is full.
        """
        start = self.offsets[first]
        view = memoryview(data)
        write_all(self._data, view, start)
        checksums = np.array(
            [
                _checksum(view[self.offsets[position] - start : self.offsets[position + 1] - start])
                for position in range(first, stop)
            ],
            np.uint32,
        )
        # Written, not stored through the map: where the disk is full, that is an error and not a signal.
        present = os.open(self.path + ".present", os.O_WRONLY)
        try:
            write_all(present, memoryview(checksums.tobytes()), self._first_checksum + 4 * first)
        finally:
            os.close(present)


def _first_checksum(head_size: int) -> int:
    return -(-(_HEADER.size + head_size) // 4) * 4


def _checksum(data: bytes | memoryview) -> int:
    return zlib.crc32(data) or 1  # 0 says that the sample is absent


def write_all(file: int, data: memoryview, offset: int) -> None:
    """Write at an offset; what a disk that is nearly full did not take is written again, and then an error."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
