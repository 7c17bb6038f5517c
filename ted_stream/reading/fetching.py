"""Fetching shards into a node's local folders: whole, or the samples that are wanted."""

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray
from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.hashing import get_hash
from streaming.base.stream import Stream

from ted_stream.digests import SAMPLED
from ted_stream.files import is_remote, write_bytes
from ted_stream.reading.heads import Head
from ted_stream.reading.ranges import chunks
from ted_stream.reading.shard_files import path_of, refuse_other_size
from ted_stream.reading.sources import read_patiently, source_of
from ted_stream.reading.sparse import SparseShard, write_all
from ted_stream.stores import ATTEMPTS, CONNECTIONS, Source

__all__ = ["Fetcher", "has_cache", "read_range", "remote_name", "serves_ranges"]


def _is_stock(stream: Stream) -> bool:
    """Whether a stream's files are downloaded by streaming's own means, which ours may then replace."""
    names = ("prepare_shard", "_prepare_shard_part", "_download_file")
    return all(getattr(type(stream), name) is getattr(Stream, name) for name in names)


def has_cache(stream: Stream) -> bool:
    """Whether a stream's local folder holds copies of what is elsewhere."""
    if not stream.remote:
        return False
    # One folder under two names has no copies.
    return is_remote(stream.remote) or os.path.realpath(stream.remote) != os.path.realpath(stream.local)


def serves_ranges(stream: Stream) -> bool:
    """Whether a stream's remote lets single samples be fetched, where the format of a shard allows it."""
    has_source = source_of(stream.remote, timeout=stream.download_timeout) is not None
    return has_source and has_cache(stream) and _is_stock(stream)


class Fetcher:
    """The connections of one process; its methods may be called from several threads. Pickled, it has none."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch")
        self._sources: dict[tuple[str, float], Source | None] = {}
        finalize(self, _close, self._sources, os.getpid()).atexit = False

    def __reduce__(self) -> Any:
        return Fetcher, ()

    def _source(self, stream: Stream) -> Source | None:
        if not _is_stock(stream) or not has_cache(stream):
            return None
        key = (str(stream.remote), stream.download_timeout)
        if key not in self._sources:
            self._sources[key] = source_of(key[0], timeout=key[1])
        return self._sources[key]

    def fetch_whole(self, stream: Stream, shard: Reader) -> None:
        """Make a shard local: its files appear whole, of the index's sizes and, if asked, hashes.

        What is there and has no elsewhere is checked by the same.

        Raises:
            OSError: if the store or the disk fails.
            ValueError: if what came is not what the index says.
        """
        if _is_stock(stream) and not has_cache(stream):
            _check_local(stream, shard)
        source = self._source(stream)
        if source is None or shard.compression is not None:
            stream.prepare_shard(shard)
            return
        for file, _ in shard.file_pairs:
            if not os.path.exists(path_of(shard, file)):
                self._fetch_file(stream, source, file, path_of(shard, file))

    def _fetch_file(self, stream: Stream, source: Source, file: FileInfo, path: str) -> None:
        # A name of its own: a worker that outlived a killed run may be writing the same file.
        temporary = Path(f"{path}.{secrets.token_hex(8)}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        remote = remote_name(stream, file)
        try:
            with temporary.open("wb") as out:

                def fetch(part: tuple[int, int]) -> None:
                    data = read_range(stream, source, remote, *part, size=file.bytes)
                    write_all(out.fileno(), memoryview(data), part[0])

                self._all(fetch, chunks(file.bytes))
                os.fsync(out.fileno())  # before it gets the name that is trusted
            _validate(stream, file, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def fetch_head(self, stream: Stream, head: Head) -> bytes:
        """The bytes of a shard's head; where it is a file of its own, that is local from then on."""
        path = Path(head.file_path)
        beside = head.file is not head.data
        if beside and path.exists():
            return path.read_bytes()
        source = self._source(stream)
        assert source is not None, "serves_ranges"
        data = read_range(stream, source, remote_name(stream, head.file), 0, head.size, size=head.file.bytes)
        if beside:
            write_bytes(path, data)
        return data

    def fetch_samples(self, stream: Stream, head: Head, sparse: SparseShard, runs: NDArray[np.int64]) -> None:
        """Fetch runs of samples, (m, 2) int64 of first and one after last, into a sparse shard."""
        source = self._source(stream)
        assert source is not None, "serves_ranges"
        remote = remote_name(stream, head.data)

        def fetch(run: Sequence[int]) -> None:
            first, stop = run
            begin, end = sparse.offsets[first], sparse.offsets[stop]
            sparse.write(first, stop, read_range(stream, source, remote, begin, end, size=head.data.bytes))

        self._all(fetch, runs.tolist())

    def _all(self, function: Callable[[Any], None], items: Iterable[Any]) -> None:
        """Call a function for all items at once, and return when no call is running any more."""
        futures = [self._pool.submit(function, item) for item in items]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def _close(sources: dict[tuple[str, float], Source | None], pid: int) -> None:
    if os.getpid() == pid:  # a forked process has nothing of them but copies
        for source in sources.values():
            if source is not None:
                source.close()


def read_range(stream: Stream, source: Source, name: str, begin: int, end: int, *, size: int) -> bytes:
    """Bytes [begin, end) of a file of ``size`` bytes, tried as often as the stream says."""
    attempts = max(1, stream.download_retry * ATTEMPTS)
    return read_patiently(source, name, begin, end, size=size, attempts=attempts)


def _check_local(stream: Stream, shard: Reader) -> None:
    """Refuse a file of a shard that is nowhere, or not what the index says: its folder holds no copies."""
    for raw, zipped in shard.file_pairs:
        paths = {path_of(shard, file): file for file in (raw, zipped) if file is not None}
        path = next(filter(os.path.exists, paths), None)
        if path is None:
            elsewhere = "has no remote" if not stream.remote else "has the same folder as its remote"
            raise FileNotFoundError(
                f"The shard file {' or '.join(paths)} is missing, and the dataset {elsewhere} to fetch it from. "
                "Restore the file, or pass as remote the folder or URI that has all shards."
            )
        refuse_other_size(path, os.path.getsize(path), paths[path])
        _validate(stream, paths[path], Path(path))


def remote_name(stream: Stream, file: FileInfo) -> str:
    """The path or URI of a file in a stream's remote."""
    return os.path.join(str(stream.remote), stream.split, file.basename)


def _validate(stream: Stream, file: FileInfo, path: Path) -> None:
    algorithm = stream.validate_hash
    if not algorithm:
        return
    if algorithm not in file.hashes:
        if SAMPLED in file.hashes:  # a tar's index takes in a few parts of it alone
            raise ValueError(
                f"validate_hash is {algorithm!r}, but the index of the tar {file.basename} has no hashes of whole "
                "files. Leave it out, or give it to the streams of other shards alone: Stream(…, validate_hash=…)."
            )
        raise ValueError(
            f"validate_hash is {algorithm!r}, but the index has {sorted(file.hashes) or 'no hashes'} for "
            f"{file.basename}. Name one of those, or write the shards with hashes=[{algorithm!r}]."
        )
    if get_hash(algorithm, path.read_bytes()) != file.hashes[algorithm]:
        raise ValueError(
            f"Checksum failure: {file.basename} does not have the {algorithm} of its index: it was changed, or damaged "
            f"on its way. Restore it in {stream.remote or stream.local!r}."
        )
