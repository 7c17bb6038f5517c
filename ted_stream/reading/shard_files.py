"""The shard files that a process keeps open, so that a sample costs one read and not an open, a seek and two reads."""

import copy
import itertools
import os
import resource
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import RLock
from typing import Any
from weakref import finalize

from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.format.mds.reader import MDSReader

from ted_stream.reading.descriptors import naming_the_limit
from ted_stream.reading.forks import renew_after_fork
from ted_stream.reading.heads import Head, head_of
from ted_stream.reading.mds_decoding import MDSDecoder
from ted_stream.reading.sparse import SparseShard

__all__ = ["ShardFiles", "open_sparse", "path_of", "refuse_other_size"]

_OPEN_SHARDS = 256
"""Kept open per process, the longest unused closed first: as many as streaming's default shuffle block mixes."""


def path_of(shard: Reader, file: FileInfo) -> str:
    """Where a file of a shard is, once it is local."""
    return os.path.join(shard.dirname, shard.split, file.basename)


def refuse_other_size(path: str, size: int, file: FileInfo) -> None:
    """Refuse a local file of another size than its index says.

    Raises:
        ValueError: naming the file.
    """
    if size != file.bytes:
        raise ValueError(
            f"{path} has {size} bytes, its index says {file.bytes}: it is cut off or belongs to another index. Restore "
            "it, or delete it where it is a cached copy."
        )


def open_sparse(head: Head) -> SparseShard | None:
    """A shard's sparse copy, if there is one."""
    return SparseShard.open(head.data_path, size=head.data.bytes, samples=head.samples, parse=head.parse)


class _WholeShard:
    """A whole shard file, open."""

    def __init__(self, head: Head) -> None:
        self._path = head.data_path
        self._data = os.open(self._path, os.O_RDONLY)
        size = os.fstat(self._data).st_size
        if size != head.data.bytes:
            self._raise_if_evicted()
        refuse_other_size(self._path, size, head.data)
        if head.file is head.data:
            table = os.pread(self._data, head.size, 0)
            if len(table) < head.size:
                self._raise_if_evicted()
        else:
            with open(head.file_path, "rb") as file:
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


class _OpenShards:
    """The shards that this process has open, of all its datasets: so many at most, the longest unused closed first.

    One that another thread is reading is closed when that has read. A forked process begins with none.
    """

    def __init__(self) -> None:
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        # Reentrant: a dataset that garbage is collected of, at any moment, closes its shards.
        self._lock = RLock()
        self._shards: OrderedDict[tuple[int, int], _WholeShard | SparseShard] = OrderedDict()

    def get(self, dataset: int, shard_id: int) -> _WholeShard | SparseShard | None:
        """A shard that is open; it is now the one that was used last."""
        with self._lock:
            shard = self._shards.get((dataset, shard_id))
            if shard is not None:
                self._shards.move_to_end((dataset, shard_id))
            return shard

    def put(self, dataset: int, shard_id: int, shard: _WholeShard | SparseShard) -> None:
        """Keep a shard open."""
        # A sparse shard has two descriptors, and a process has other uses for them.
        most, limit = _OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY:
            most = min(most, limit // 8)
        with self._lock:
            self._shards[dataset, shard_id] = shard
            while len(self._shards) > most:
                self._shards.popitem(last=False)

    def drop(self, dataset: int, shard_id: int) -> None:
        """Close a shard, if it is open."""
        with self._lock:
            self._shards.pop((dataset, shard_id), None)

    def of(self, dataset: int) -> list[tuple[int, _WholeShard | SparseShard]]:
        """The open shards of a dataset, with their ids."""
        with self._lock:
            # By a copy of the keys: garbage that is collected here closes other datasets' shards.
            mine = [key for key in list(self._shards) if key[0] == dataset]
            return [(key[1], self._shards[key]) for key in mine]

    def close(self, dataset: int) -> None:
        """Close all shards of a dataset."""
        for shard_id, _ in self.of(dataset):
            self.drop(dataset, shard_id)


_opened = _OpenShards()
_numbers = itertools.count()  # of the datasets of this process


class ShardFiles:
    """Reads samples' bytes from local shards, whole or sparse; from several threads, if they like.

    It takes the place of the readers' own ways to a sample's bytes and to what they encode, so that whatever is built
    on a reader reads through it. The files that it opens are closed when it is freed.

    Args:
        shards: readers of the dataset's shards.
        may_be_read: tells by a shard's id whether its files may be read as they are; others are taken as not there.

    Attributes:
        missed: (shard id, position) of the sample that was last asked for in vain.
    """

    def __init__(self, shards: Sequence[Reader], may_be_read: Callable[[int], bool]) -> None:
        self.missed: tuple[int, int] | None = None
        self._may_be_read = may_be_read
        self._heads = [head_of(shard) for shard in shards]
        self._begin()
        for shard_id, (shard, head) in enumerate(zip(shards, self._heads, strict=True)):
            if head is None:  # by a copy of the reader, since one that held itself would end with a collection alone
                shard.get_sample_data = partial(self._read_stock, shard_id, copy.copy(shard).get_sample_data)
            else:
                shard.get_sample_data = partial(self.read, shard_id)
            if isinstance(shard, MDSReader) and type(shard).decode_sample is MDSReader.decode_sample:
                shard.decode_sample = MDSDecoder(shard)

    def _begin(self) -> None:
        self._number = next(_numbers)
        finalize(self, _opened.close, self._number).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_number"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, shard_id: int, idx: int) -> bytes:
        """The encoded bytes of the sample at position ``idx`` of a shard.

        Raises:
            FileNotFoundError: if they are not local.
            ValueError: if the local file is not the one of the index.
        """
        head = self._heads[shard_id]
        assert head is not None, "reads through it"
        for _ in range(2):
            shard = _opened.get(self._number, shard_id)
            if shard is None:
                if not self._may_be_read(shard_id):
                    break
                try:
                    with naming_the_limit():
                        shard = _opened_shard(head)
                except FileNotFoundError:
                    break
                _opened.put(self._number, shard_id, shard)
            data = shard.read(idx)
            if data is not None:
                return data
            # Another process may have evicted the file and fetched it anew.
            _opened.drop(self._number, shard_id)
        self.missed = shard_id, idx
        raise FileNotFoundError(f"Sample {idx} of {head.data_path} is not there")

    def _read_stock(self, shard_id: int, read: Callable[[int], bytes], idx: int) -> bytes:
        """The encoded bytes of a sample of a shard that has no head, by its reader's own means."""
        if not self._may_be_read(shard_id):
            raise FileNotFoundError(f"Shard {shard_id} is yet to be prepared")
        return read(idx)

    def close(self) -> None:
        """Close all files."""
        _opened.close(self._number)

    def close_removed(self) -> list[int]:
        """Close the whole shards whose file somebody removed while it was open here, and return their ids."""
        shards = _opened.of(self._number)
        removed = [shard_id for shard_id, shard in shards if isinstance(shard, _WholeShard) and shard.removed]
        for shard_id in removed:
            _opened.drop(self._number, shard_id)
        return removed


def _opened_shard(head: Head) -> _WholeShard | SparseShard:
    try:
        return _WholeShard(head)
    except FileNotFoundError:
        sparse = open_sparse(head)
        if sparse is None:
            raise
        return sparse
