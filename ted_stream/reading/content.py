"""What identifies the bytes of a dataset's shards: the hashes of its index, or what a few ranges of them tell.

Copies of an index, and of shards, outlive what they were made of. So every job compares a cached index with the
remote's. That may be the same after the data was made anew, so it cannot vouch for what was read of a remote once and
is kept beside the local copies: every job looks again at one of the shards that are yet to be fetched, drawn anew. Data
that is local anyway is read anew by every job, which costs three reads a shard.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import SystemRandom
from warnings import warn

from filelock import FileLock
from streaming.base.dataset import StreamingDataset
from streaming.base.format import get_index_basename
from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.stream import Stream

from ted_stream.digests import SAMPLED, sampled_digest
from ted_stream.files import join, read_bytes, write_bytes
from ted_stream.reading.fetching import has_cache, read_range, remote_name, serves_ranges
from ted_stream.reading.shard_files import path_of
from ted_stream.reading.sources import LocalSource, source_of
from ted_stream.reading.tar_shards import TarReader
from ted_stream.stores import CONNECTIONS, Source

__all__ = ["local_contents", "shard_contents"]

_random = SystemRandom()  # the global generator is that of training and of samples
_KEPT = ".ted_content.json"  # beside the index, where that is a copy of the remote's


def shard_contents(dataset: StreamingDataset, folder: Path) -> list[str]:
    """The :attr:`~ted_stream.skip_list.ShardLayout.content` of each shard; found by one process of the node for all.

    Args:
        dataset: that streaming has set up.
        folder: of what all processes of the node must know of it.

    Raises:
        OSError: if the store fails for good.
        ValueError: if a remote has another index than its local folder, or a file of another size than that says.
    """
    contents = _indexed(dataset.shards)
    if all(contents) and not any(map(has_cache, dataset.streams)):
        return contents
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "content.lock"):
        file = folder / "content.json"
        if file.exists():
            return json.loads(file.read_bytes())
        firsts, counts = dataset.shard_offset_per_stream.tolist(), dataset.shards_per_stream.tolist()
        for stream, first, count in zip(dataset.streams, firsts, counts, strict=True):
            part = slice(first, first + count)
            if has_cache(stream):
                _check_index(stream, dataset.shards[part])
            if not all(contents[part]):
                contents[part] = _of_stream(stream, dataset.shards[part])
        write_bytes(file, json.dumps(contents).encode())
    unknown = [shard.file_pairs[0][0].basename for shard, of in zip(dataset.shards, contents, strict=True) if not of]
    if unknown:
        warn(
            f"What {len(unknown)} of {len(contents)} shards hold cannot be told ({unknown[0]} first): the index has no "
            "hashes of them, and they can neither be read by ranges nor are they there. Skip-lists, scores and "
            "checkpoints are matched by the shards' names, sizes and sample counts, which data that was made anew may "
            "share. Write shards with hashes=['sha1'] to have their content checked.",
            UserWarning,
            stacklevel=3,
        )
    return contents


def local_contents(shards: Sequence[Reader]) -> list[str]:
    """The content of shards that are in their local folders; empty for one that is not."""
    contents = _indexed(shards)
    return contents if all(contents) else _read_all([_File(shard) for shard in shards])


def _indexed(shards: Sequence[Reader]) -> list[str]:
    """By the hashes of the index, of several the first by name; empty for a shard that has none."""
    hashes = [shard.file_pairs[0][0].hashes for shard in shards]
    return [f"{min(of)}:{of[min(of)]}" if of else "" for of in hashes]


def _check_index(stream: Stream, shards: Sequence[Reader]) -> None:
    """Refuse a cached index that is not the remote's; where that cannot be read, warn, for the cache may be used."""
    name = get_index_basename()
    cached, remote = Path(stream.local, stream.split, name), join(os.path.join(str(stream.remote), stream.split), name)
    try:
        is_same = json.loads(read_bytes(remote)) == json.loads(cached.read_bytes())
    except Exception as error:  # every store has its own
        if isinstance(error, FileNotFoundError) and all(isinstance(shard, TarReader) for shard in shards):
            return  # of tars that are not ours the index was written here
        warn(
            f"The cached index {str(cached)!r} could not be compared with {remote!r} ({type(error).__name__}: {error}) "
            "and is taken to describe what is there: data that was made anew would go unseen.",
            UserWarning,
            stacklevel=4,
        )
        return
    if not is_same:
        raise ValueError(
            f"The cached index {str(cached)!r} is another than {remote!r}: the remote's data was made anew, or the "
            "local folder has copies of other data, and the two would be mixed. Empty the folder "
            f"{str(cached.parent)!r} or pass another as local, so that all is fetched anew; or pass the remote that "
            "the copies are of."
        )


def _of_stream(stream: Stream, shards: Sequence[Reader]) -> list[str]:
    if not has_cache(stream):
        return local_contents(shards)
    if not serves_ranges(stream):
        return [""] * len(shards)  # whether or not some happen to be local
    files = [_File(shard, stream) for shard in shards]
    described = [str(stream.remote), *((file.kind, file.info.basename, file.info.bytes) for file in files)]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    kept = Path(stream.local, stream.split, _KEPT)
    known = _read_kept(kept, key)
    if known is not None:
        absent = [(file, of) for file, of in zip(files, known, strict=True) if not file.is_local]
        if not absent:
            return known
        file, of = _random.choice(absent)
        if _read_all([file]) == [of]:
            return known
    found = _read_all(files)
    if all(found):
        write_bytes(kept, json.dumps({"of": key, "contents": found}).encode())
    return found


def _read_kept(path: Path, key: str) -> list[str] | None:
    try:
        kept = json.loads(path.read_bytes())
        return kept["contents"] if kept["of"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or none that could be read
        return None


class _File:
    """The file of a shard that its digest is of: what the remote has, or, without one, what is there.

    Args:
        shard: its reader.
        stream: whose remote has it; ``None`` if it is local or nowhere.
    """

    def __init__(self, shard: Reader, stream: Stream | None = None) -> None:
        raw, zipped = shard.file_pairs[0]
        is_zipped = zipped is not None and (stream is not None or os.path.exists(path_of(shard, zipped)))
        self.info: FileInfo = zipped if zipped is not None and is_zipped else raw
        self.kind = f"{SAMPLED}-zip" if is_zipped else SAMPLED
        self.stream = stream
        self._path = path_of(shard, self.info)

    @property
    def is_local(self) -> bool:
        """Whether it is whole in the local folder."""
        return os.path.isfile(self._path) and os.path.getsize(self._path) == self.info.bytes

    def content(self, source: Source | None) -> str:
        """The content of the shard; empty where there is no such file."""
        size, stream = self.info.bytes, self.stream
        if self.is_local:
            read = partial(LocalSource().read, self._path, size=size)
        elif source is None or stream is None:
            return ""
        else:
            read = partial(read_range, stream, source, remote_name(stream, self.info), size=size)
        try:
            return f"{self.kind}:{sampled_digest(read, size)}"
        except FileNotFoundError:
            return ""  # to read it is an error, which names it


def _read_all(files: Sequence[_File]) -> list[str]:
    """The contents of one stream's files."""
    stream = files[0].stream
    source = None if stream is None else source_of(stream.remote, timeout=stream.download_timeout)
    try:
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="content") as pool:
            return list(pool.map(lambda file: file.content(source), files))
    finally:
        if source is not None:
            source.close()
