"""The local files of a shard that are copies of what is elsewhere: which they are, and how they are kept clean."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from streaming.base.format.base.reader import Reader
from streaming.base.stream import Stream

from ted_stream.reading.heads import Head, head_of
from ted_stream.reading.shard_files import path_of
from ted_stream.reading.sparse import SPARSE_SUFFIXES

__all__ = [
    "PAGE",
    "bytes_on_disk",
    "copies_of",
    "discard",
    "discard_sparse",
    "is_as_indexed",
    "lacks_raw",
    "remove_cut_off",
    "remove_unfinished",
    "with_extents",
]

PAGE = 4096
"""Bytes of a file system's block."""

_UNFINISHED = re.compile(r"\.?(.+?)(?:\.present)?\.[0-9a-f]{16}\.tmp")
_EVICTED = ".evicted"
_EXTENTS = 340  # runs of blocks that ext4 lists in a block


def copies_of(shard: Reader) -> list[str]:
    """Where the files of a cached shard are, or would be, that can be fetched again."""
    head, paths = head_of(shard), []
    for raw, zipped in shard.file_pairs:
        # Offsets beside a tar are small, and may have been written here for a bucket that is not ours.
        if head is None or raw is head.data:
            paths.append(path_of(shard, raw))
        if zipped is not None:
            paths.append(path_of(shard, zipped))
    return paths if head is None else paths + _sparse_paths(head)


def with_extents(size: int) -> int:
    """What a file with holes may come to take up: ext4 adds blocks that list its others when it writes them to disk.

    Args:
        size: bytes of its blocks as yet.
    """
    return size + PAGE * (1 + size // (_EXTENTS * PAGE))


def bytes_on_disk(shard: Reader) -> int:
    """Bytes that a cached shard's files take up at most, as streaming counts them; holes are not counted."""
    usage = 0
    for path in {*copies_of(shard), *(path_of(shard, raw) for raw, _ in shard.file_pairs)}:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        blocks = 512 * status.st_blocks
        usage += min(status.st_size, with_extents(blocks) if path.endswith(SPARSE_SUFFIXES[0]) else blocks)
    return usage


def lacks_raw(shard: Reader) -> bool:
    """Whether a local shard has yet to be decompressed, or has lost a file."""
    return not all(os.path.isfile(path_of(shard, raw)) for raw, _ in shard.file_pairs)


def is_as_indexed(shard: Reader) -> bool:
    """Whether a local shard has all its files, decompressed, of the sizes that its index says."""
    try:
        return all(os.path.getsize(path_of(shard, raw)) == raw.bytes for raw, _ in shard.file_pairs)
    except FileNotFoundError:
        return False


def discard(path: str, *, cut: bool = True) -> None:
    """Remove a file; with `cut`, so that its blocks are free at once, whoever has it open.

    Its name never tells of a cut file.
    """
    aside = path + _EVICTED
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if cut and not path.endswith(SPARSE_SUFFIXES[1]):  # that one is mapped, and a map of a cut file ends a process
        os.truncate(aside, 0)
    os.unlink(aside)


def discard_sparse(shard: Reader) -> None:
    """Remove a shard's sparse copy, if there is one."""
    head = head_of(shard)
    if head is not None:
        for path in _sparse_paths(head):
            discard(path)


def remove_cut_off(shard: Reader) -> bool:
    """Remove copies that a killed run was removing or downloading; return whether one of those has its final name."""
    copies, found = copies_of(shard), False
    for path in copies:
        Path(path + _EVICTED).unlink(missing_ok=True)
    for file, _ in shard.file_pairs:
        path = path_of(shard, file)
        if path in copies and os.path.isfile(path) and os.path.getsize(path) != file.bytes:
            discard(path)
            found = True
    return found


def remove_unfinished(stream: Stream, shards: Sequence[Reader]) -> None:
    """Remove what a run was writing when it was killed: files of these shards under temporary names."""
    names = {os.path.basename(file.basename) for shard in shards for file, _ in shard.file_pairs}
    for path in Path(stream.local, stream.split).rglob("*.tmp"):
        match = _UNFINISHED.fullmatch(path.name)
        if match is not None and match[1] in names:
            path.unlink(missing_ok=True)


def _sparse_paths(head: Head) -> list[str]:
    return [head.data_path + suffix for suffix in SPARSE_SUFFIXES]
