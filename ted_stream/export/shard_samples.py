"""The bytes of a shard's samples, as they are: read whole, checked against the index, and cut out."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.digests import SAMPLED, sampled_digest
from ted_stream.export.stream_index import file_of, may_be_there
from ted_stream.files import join, read_bytes

__all__ = ["Samples", "digest_of", "read_samples"]

_MEND = "Restore the file, or write the dataset again."


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of one shard.

    Attributes:
        data: of the whole shard, uncompressed.
        offsets: (n + 1,) int64: sample i is the bytes [offsets[i], offsets[i + 1]) of it.
        head: the words of an MDS shard on its format, as they lie in front of the first sample; empty of a tar.
    """

    data: bytes
    offsets: NDArray[np.int64]
    head: bytes

    def runs(self, positions: NDArray[np.int64]) -> Iterator[memoryview]:
        """The bytes of some samples, given by ascending positions, in as few pieces as they lie in."""
        view, ends = memoryview(self.data), np.flatnonzero(np.diff(positions) != 1)
        firsts = positions[np.concatenate(([0], ends + 1))]
        lasts = positions[np.concatenate((ends, [len(positions) - 1]))]
        for begin, end in zip(self.offsets[firsts].tolist(), self.offsets[lasts + 1].tolist(), strict=True):
            yield view[begin:end]

    def each(self, positions: NDArray[np.int64]) -> Iterator[bytes]:
        """The bytes of some samples, one by one."""
        for begin, end in zip(self.offsets[positions].tolist(), self.offsets[positions + 1].tolist(), strict=True):
            yield self.data[begin:end]


def read_samples(folder: str, entry: Mapping[str, Any], content: str) -> Samples:
    """All samples of an MDS or tar shard.

    Args:
        folder: of the index, a local path or a URI.
        entry: of the shard in the index.
        content: what identifies the bytes that are expected (`ShardLayout.content`); empty where it is not known. A
            digest of the compressed file says nothing where only the other one is there.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, or another than the index and the run say.
    """
    kind, _, expected = content.partition(":")
    raw, zipped, of_zipped = entry["raw_data"], entry.get("zip_data"), kind.endswith("-zip")
    file = zipped if of_zipped and zipped and may_be_there(folder, zipped) else file_of(folder, entry)
    data = _read_file(folder, file)
    if of_zipped and file is not raw:
        _check_digest(kind.removesuffix("-zip"), data, expected, join(folder, file["basename"]))
    if file is not raw:
        data = _decompressed(data, entry, join(folder, file["basename"]))
    if kind and not of_zipped:
        _check_digest(kind, data, expected, join(folder, raw["basename"]))
    if entry["format"] == "tar":
        return Samples(data=data, offsets=_tar_offsets(folder, entry), head=b"")
    return _of_mds(data, entry, folder)


def _check_digest(kind: str, data: bytes, expected: str, path: str) -> None:
    found = digest_of(kind, data)
    if found != expected:
        raise ValueError(
            f"{path} has {kind} {found}, expected {expected}: it is damaged, or another than the one that the run "
            f"read. {_MEND}"
        )


def _decompressed(data: bytes, entry: Mapping[str, Any], path: str) -> bytes:
    from ted_stream.reading.codecs import decompress

    size = entry["raw_data"]["bytes"]
    try:
        data = decompress(entry["compression"], data)
    except Exception as error:  # every compression has its own
        raise ValueError(f"{path} cannot be decompressed ({error}): it is damaged. {_MEND}") from error
    if len(data) != size:
        raise ValueError(f"{path} holds {len(data)} bytes, its index says {size}: it is damaged. {_MEND}")
    return data


def _read_file(folder: str, file: Mapping[str, Any]) -> bytes:
    path = join(folder, file["basename"])
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}, which holds kept samples, is missing. {_MEND}") from error
    if len(data) != file["bytes"]:
        raise ValueError(f"{path} has {len(data)} bytes, its index says {file['bytes']}: it is damaged. {_MEND}")
    return data


def digest_of(kind: str, data: bytes) -> str:
    """The digest of a file's bytes: one of those that streaming knows, or that of a few parts of it."""
    if kind == SAMPLED:
        return sampled_digest(lambda begin, end: data[begin:end], len(data))
    if kind in hashlib.algorithms_available:
        return hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    import xxhash

    return getattr(xxhash, kind)(data).hexdigest()


def _of_mds(data: bytes, entry: Mapping[str, Any], folder: str) -> Samples:
    samples, size = entry["samples"], 4 * (entry["samples"] + 2)
    found = np.frombuffer(data[:size], "<u4").astype(np.int64)
    bounds = np.concatenate(([size], found[1:], [len(data)]))
    if len(found) != samples + 2 or found[0] != samples or (np.diff(bounds) < 0).any() or found[-1] != len(data):
        raise ValueError(
            f"{join(folder, entry['raw_data']['basename'])} does not begin with the offsets of {samples} samples in "
            f"{len(data)} bytes, as its index says. {_MEND}"
        )
    return Samples(data=data, offsets=found[1:], head=data[size : found[1]])


def _tar_offsets(folder: str, entry: Mapping[str, Any]) -> NDArray[np.int64]:
    from ted_stream.reading.tar_shards import FileInfo, parse_offsets

    tar, file = FileInfo(**entry["raw_data"]), FileInfo(**entry["raw_meta"])
    return parse_offsets(_read_file(folder, entry["raw_meta"]), samples=entry["samples"], tar=tar, file=file)
