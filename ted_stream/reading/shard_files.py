"""The shard files that a process keeps open, so that a sample costs one read and not an open, a seek and two reads."""

import os
import resource
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.format.mds.reader import MDSReader

from ted_stream.reading.heads import Head, head_of
from ted_stream.reading.mds_decoding import MDSDecoder
from ted_stream.reading.sparse import SparseShard

__all__ = ["ShardFiles", "open_sparse", "path_of"]

_OPEN_SHARDS = 256
"""Kept open per dataset, the longest unused closed first: as many as streaming's default shuffle block mixes."""


def path_of(shard: Reader, file: FileInfo) -> str:
    """Where a file of a shard is, once it is local."""
    return os.path.join(shard.dirname, shard.split, file.basename)


def open_sparse(head: Head) -> SparseShard | None:
    """A shard's sparse copy, if there is one."""
    path = path_of(head.shard, head.data)
    return SparseShard.open(path, size=head.data.bytes, samples=head.shard.samples, parse=head.parse)


class _WholeShard:
    """A whole shard file, open."""

    def __init__(self, head: Head) -> None:
        self._path = path_of(head.shard, head.data)
        self._data = os.open(self._path, os.O_RDONLY)
        size = os.fstat(self._data).st_size
        if size != head.data.bytes:
            self._raise_if_evicted()
            raise ValueError(
                f"{self._path} has {size} bytes, its index says {head.data.bytes}: it is cut off or belongs to another "
                "index. Restore it, or delete it where it is a cached copy."
            )
        if head.file is head.data:
            table = os.pread(self._data, head.size, 0)
            if len(table) < head.size:
                self._raise_if_evicted()
        else:
            with open(path_of(head.shard, head.file), "rb") as file:
                table = file.read()
        self._offsets = array("q", head.parse(table).tobytes())

    def _raise_if_evicted(self) -> None:
        """Eviction takes a file's name away, then its bytes."""
        if os.fstat(self._data).st_nlink == 0 or not os.path.exists(self._path):
            raise FileNotFoundError(f"{self._path} was evicted")
        if not os.path.samestat(os.fstat(self._data), os.stat(self._path)):
            raise FileNotFoundError(f"{self._path} was evicted and fetched anew")

    def __del__(self) -> None:
        if hasattr(self, "_data"):
            os.close(self._data)

    @property
    def removed(self) -> bool:
        return not os.fstat(self._data).st_nlink

    def read(self, position: int) -> bytes | None:
        begin = self._offsets[position]
        size = self._offsets[position + 1] - begin
        data = os.pread(self._data, size, begin)
        return data if len(data) == size else None  # cut short when it was evicted


class ShardFiles:
    """Reads samples' bytes from local shards, whole or sparse.

    It takes the place of the readers' own ways to a sample's bytes and to what they encode, so that whatever is built
    on a reader reads through it.

    Args:
        shards: readers of the dataset's shards.

    Attributes:
        missed: (shard id, position) of the sample that was last asked for in vain.
    """

    def __init__(self, shards: Sequence[Reader]) -> None:
        self.missed: tuple[int, int] | None = None
        # A sparse shard has two descriptors, and a process has other uses for them, a second dataset for one.
        self._most = min(_OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
        self._heads = [head_of(shard) for shard in shards]
        self._open: OrderedDict[int, _WholeShard | SparseShard] = OrderedDict()
        for shard_id, (shard, head) in enumerate(zip(shards, self._heads, strict=True)):
            if head is not None:
                shard.get_sample_data = partial(self.read, shard_id)
            if isinstance(shard, MDSReader) and type(shard).decode_sample is MDSReader.decode_sample:
                shard.decode_sample = MDSDecoder(shard)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # open files stay with their process

    def read(self, shard_id: int, idx: int) -> bytes:
        """The encoded bytes of the sample at position ``idx`` of a shard.

        Raises:
            FileNotFoundError: if they are not local.
            ValueError: if the local file is not the one of the index.
        """
        for _ in range(2):
            shard = self._open.get(shard_id)
            if shard is None:
                try:
                    shard = self._opened(shard_id)
                except FileNotFoundError:
                    break
                self._open[shard_id] = shard
                if len(self._open) > self._most:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard_id)
            data = shard.read(idx)
            if data is not None:
                return data
            # Another process may have evicted the file and fetched it anew.
            self._open.pop(shard_id, None)
        self.missed = shard_id, idx
        head = self._heads[shard_id]
        assert head is not None, "reads through it"
        raise FileNotFoundError(f"Sample {idx} of {path_of(head.shard, head.data)} is not there")

    def close(self) -> None:
        """Close all files."""
        self._open = OrderedDict()

    def close_removed(self) -> list[int]:
        """Close the whole shards whose file somebody removed while it was open here, and return their ids."""
        removed = [
            shard_id for shard_id, shard in self._open.items() if isinstance(shard, _WholeShard) and shard.removed
        ]
        for shard_id in removed:
            del self._open[shard_id]
        return removed

    def _opened(self, shard_id: int) -> _WholeShard | SparseShard:
        head = self._heads[shard_id]
        assert head is not None, "reads through it"
        try:
            return _WholeShard(head)
        except FileNotFoundError:
            sparse = open_sparse(head)
            if sparse is None:
                raise
            return sparse
