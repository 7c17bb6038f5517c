"""The skip-list as a Parquet file: a row per shard, read back only if every part of it agrees.

There are four format versions. A list without weights, of shards of unknown content, is written as version 1, with the
bytes and the digest that it had before there was either, so that older readers go on reading it. Version 2 is version 1
and a column ``weights``: of each shard the weights of its kept samples, in order of their positions. Versions 3 and 4
are versions 1 and 2 and a column ``content``: what identifies a shard's bytes, empty where that is unknown.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import FrozenBitMap

from ted_stream.files import read_bytes, write_bytes
from ted_stream.skip_list.bitmaps import portable_bytes
from ted_stream.skip_list.errors import SkipListError
from ted_stream.skip_list.kinds import SKIP_LIST, kind_of
from ted_stream.skip_list.layout import DatasetLayout, ShardLayout, StreamLayout
from ted_stream.skip_list.skip_list import SkipList
from ted_stream.skip_list.version import version_of
from ted_stream.skip_list.weights import joined

_MAGIC = b"PAR1"
_SHORTEST = 12
_PREFIX = "ted_stream."
_FIELDS = {
    "format_version",
    "fingerprint",
    "epoch",
    "keep_ratio",
    "samples",
    "kept",
    "method",
    "run",
    "digest",
    "content",
    "checksum",
}
_SCHEMA = pa.schema(
    [
        pa.field("stream", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("kept", pa.int64(), nullable=False),
        pa.field("pruned", pa.binary(), nullable=False),
    ]
)
_WEIGHTS = pa.field("weights", pa.list_(pa.field("element", pa.float32(), nullable=False)))
_CONTENT = pa.field("content", pa.string(), nullable=False)
_SCHEMAS = {
    version_of(weighted=weighted, with_content=with_content): pa.schema(
        [*_SCHEMA, *([_WEIGHTS] if weighted else []), *([_CONTENT] if with_content else [])]
    )
    for with_content in (False, True)
    for weighted in (False, True)
}
_AGAIN = "copy or write the file again"
_A_RUNS = "check the path: a run's lists are in its folder, such as skip_lists/ep0007.parquet"
_Row = dict[str, Any]


def write_skip_list(skip_list: SkipList, path: str | os.PathLike[str]) -> None:
    """Write ``skip_list`` to ``path``, local or a URI, whole or not at all; missing folders are made.

    Raises:
        OSError: The file cannot be written; a file that was there before is unchanged.
        ValueError: ``path`` is empty, or a URI that cannot be written to.
    """
    write_bytes(path, to_bytes(skip_list))


def read_skip_list(
    path: str | os.PathLike[str], *, layout: DatasetLayout | None = None, digest: str | None = None
) -> SkipList:
    """Read the skip-list at ``path``, local or a URI; see `from_bytes` for the checks.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: The path is that of a folder.
        ValueError: The path is empty.
        TypeError: The path is neither text nor a path object.
        SkipListError: The file is damaged, of another kind or version, or not the list that was asked for.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"the path of a skip-list is an object of type {type(path).__name__}; give text or a path object. Of "
            "sample ids, SkipList.from_pruned_ids makes a list."
        )
    if not os.fspath(path):
        raise ValueError(
            "the path of a skip-list is '', which names no file; give the path or URI of one, or None where nothing is "
            "to be pruned"
        )
    try:
        data = read_bytes(path)
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder, and a skip-list is a file; {_A_RUNS}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no skip-list at {os.fspath(path)!r}, and none is assumed; check the path, "
            "or whether the run wrote that epoch"
        ) from error
    return from_bytes(data, source=os.fspath(path), layout=layout, digest=digest)


def unweighted(skip_list: SkipList | str | os.PathLike[str], *, reader: str) -> SkipList:
    """The list that a reader of a fixed subset was given, by value or as the path or URI of its file.

    Args:
        skip_list: The list, or where it is.
        reader: Who reads the subset; named in errors.

    Raises:
        SkipListError: The file cannot be trusted; see `from_bytes`.
        ValueError: The list has weights, which a reader of samples cannot apply.
    """
    if not isinstance(skip_list, SkipList):
        skip_list = read_skip_list(skip_list)
    if skip_list.weights is not None:
        low, high = skip_list.weights.min(initial=np.inf), skip_list.weights.max(initial=0)
        raise ValueError(
            f"The skip-list of {skip_list.method}, epoch {skip_list.epoch}, weighs the {skip_list.num_kept} samples "
            f"that it keeps by {low:.3g} to {high:.3g}, and {reader} has no loss to apply that to: training would "
            "count them all alike, without a word. Pass read_skip_list(…).without_weights() if that is what you want."
        )
    return skip_list


def to_bytes(skip_list: SkipList) -> bytes:
    """Bytes of the Parquet file that holds ``skip_list``."""
    rows = _rows_of(skip_list)
    metadata = {
        "format_version": str(skip_list.format_version),
        "fingerprint": skip_list.layout.fingerprint,
        "epoch": str(skip_list.epoch),
        "keep_ratio": repr(skip_list.keep_ratio),
        "samples": str(skip_list.num_samples),
        "kept": str(skip_list.num_kept),
        "method": skip_list.method,
        "run": skip_list.run,
        "digest": skip_list.digest,
        "content": _content(rows),
    }
    metadata["checksum"] = _checksum(metadata)
    schema = _SCHEMAS[skip_list.format_version].with_metadata(
        {_PREFIX + name: value for name, value in metadata.items()}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        sink,
        compression="zstd",
        compression_level=9,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    data = sink.getvalue().to_pybytes()
    del sink
    pa.default_memory_pool().release_unused()  # it keeps several times the list, in every process that trains
    return data


def from_bytes(data: bytes, *, source: str, layout: DatasetLayout | None = None, digest: str | None = None) -> SkipList:
    """Read a skip-list from the bytes of its Parquet file and check every part against the others.

    Args:
        data: The whole file.
        source: Where the bytes come from; named in errors.
        layout: The dataset that the list must belong to; the result has its stream order.
        digest: The `SkipList.digest` that the list must have.

    Raises:
        SkipListError: The bytes are not a skip-list of this format version, a checksum, count, fingerprint or
            digest disagrees, or the list is not the one for ``layout`` and ``digest``.
    """
    try:
        return _read(data, layout=layout, digest=digest)
    except (SkipListError, pa.ArrowException, OSError, ValueError, MemoryError) as error:
        fix = "" if isinstance(error, SkipListError) else f"; the file is damaged: {_AGAIN}"
        raise SkipListError(f"skip-list {source!r}: {error}{fix}") from error
    finally:
        pa.default_memory_pool().release_unused()


def _read(data: bytes, *, layout: DatasetLayout | None, digest: str | None) -> SkipList:
    if len(data) < _SHORTEST or data[:4] != _MAGIC or data[-4:] != _MAGIC:
        raise SkipListError(
            f"these {len(data)} bytes are no Parquet file: they start with {data[:4]!r} and end with "
            f"{data[-4:]!r} instead of {_MAGIC!r}; the file is cut off or something else: {_AGAIN}"
        )
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    metadata = _checked_metadata(file.metadata.metadata)
    schema = _SCHEMAS[int(metadata["format_version"])]
    if not file.schema_arrow.equals(schema):
        raise SkipListError(f"columns are {_inline(file.schema_arrow)} instead of {_inline(schema)}; {_AGAIN}")
    # No thread of Arrow's may outlive the reading: one that meets the interpreter's end aborts the process.
    rows = _rows_in(file.read(use_threads=False))
    _agree("content hash of the rows", _content(rows), metadata["content"])
    found = _skip_list_of(rows, metadata)
    _agree("number of samples", str(found.num_samples), metadata["samples"])
    _agree("number of kept samples", str(found.num_kept), metadata["kept"])
    _agree("dataset fingerprint", found.layout.fingerprint, metadata["fingerprint"])
    _agree("stream keys", found.layout.stream_keys, tuple(key for key, _ in _by_stream(rows)))
    _agree("digest", found.digest, metadata["digest"])
    if digest is not None and found.digest != digest:
        raise SkipListError(f"digest is {found.digest}, asked for {digest}; this is another list: check the path")
    return found if layout is None else found.aligned_to(layout)


def _checked_metadata(raw: dict[bytes, bytes] | None) -> dict[str, str]:
    """Our entries of the file's metadata, without prefix, once kind, version and checksum are right."""
    if (kind := kind_of(raw)) not in (SKIP_LIST, None):
        raise SkipListError(f"this is {kind}, no skip-list; {_A_RUNS}")
    prefix = _PREFIX.encode()
    ours = {k[len(prefix) :].decode(): v.decode() for k, v in (raw or {}).items() if k.startswith(prefix)}
    if not ours:
        raise SkipListError(f"a Parquet file without {_PREFIX}* metadata is no skip-list; {_A_RUNS}")
    version = ours.get("format_version")
    if version not in {str(known) for known in _SCHEMAS}:
        raise SkipListError(
            f"format version {version} found, {', '.join(map(str, _SCHEMAS))} supported; "
            "use the ted-stream release that wrote the file"
        )
    if ours.keys() != _FIELDS:
        raise SkipListError(f"metadata has the entries {sorted(ours)} instead of {sorted(_FIELDS)}; {_AGAIN}")
    checksum = ours.pop("checksum")
    _agree("checksum of the metadata", _checksum(ours), checksum)
    return ours


def _rows_in(table: pa.Table) -> list[_Row]:
    """The rows of a file; weights as float32 arrays, since there may be 10^8 of them."""
    if "weights" not in table.column_names:
        return table.to_pylist()
    rows = table.drop_columns(["weights"]).to_pylist()
    weights = [part for chunk in table["weights"].chunks for part in chunk]
    for row, part in zip(rows, weights, strict=True):
        if not part.is_valid:
            raise SkipListError(f"shard {row['shard']!r} has no weights, but the file has a column of them; {_AGAIN}")
        row["weights"] = part.values.to_numpy(zero_copy_only=False)
    return rows


def _skip_list_of(rows: list[_Row], metadata: dict[str, str]) -> SkipList:
    seen: set[tuple[str, str]] = set()
    bitmaps: list[FrozenBitMap] = []
    for row in rows:
        place = (row["stream"], row["shard"])
        if place in seen:
            raise SkipListError(f"two rows for shard {place[1]!r} of stream {place[0]}; {_AGAIN}")
        seen.add(place)
        bitmaps.append(_bitmap_of(row))
        if "weights" in row:
            _agree(f"number of weights of shard {row['shard']!r}", len(row["weights"]), row["kept"])
    weights = [row["weights"] for row in rows if "weights" in row]
    return SkipList(
        layout=DatasetLayout(streams=tuple(_stream_of(list(group)) for _, group in _by_stream(rows))),
        pruned=tuple(bitmaps),
        epoch=int(metadata["epoch"]),
        keep_ratio=float(metadata["keep_ratio"]),
        method=metadata["method"],
        run=metadata["run"],
        weights=joined(weights) if weights else None,
    )


def _by_stream(rows: list[_Row]) -> Iterator[tuple[str, Iterator[_Row]]]:
    return groupby(rows, key=itemgetter("stream"))


def _stream_of(rows: list[_Row]) -> StreamLayout:
    shards = (
        ShardLayout(name=row["shard"], size=row["bytes"], samples=row["samples"], content=row.get("content", ""))
        for row in rows
    )
    return StreamLayout(shards=tuple(shards))


def _bitmap_of(row: _Row) -> FrozenBitMap:
    try:
        bitmap = FrozenBitMap.deserialize(row["pruned"])
    except (ValueError, IndexError) as error:
        raise SkipListError(
            f"the {len(row['pruned'])} bytes for shard {row['shard']!r} are no Roaring bitmap ({error}); "
            f"the file is damaged: {_AGAIN}"
        ) from error
    if bitmap and bitmap.max() >= row["samples"]:
        raise SkipListError(
            f"position {bitmap.max()} is pruned in shard {row['shard']!r} of {row['samples']} samples; "
            f"the file is damaged: {_AGAIN}"
        )
    kept = row["samples"] - len(bitmap)
    _agree(f"number of kept samples in shard {row['shard']!r}", kept, row["kept"])
    return bitmap


def _rows_of(skip_list: SkipList) -> list[_Row]:
    layout = skip_list.layout
    keys = [
        key for key, stream in zip(layout.stream_keys, layout.streams, strict=True) for _ in range(len(stream.shards))
    ]
    rows = [
        {
            "stream": key,
            "shard": shard.name,
            "bytes": shard.size,
            "samples": shard.samples,
            "kept": shard.samples - len(bitmap),
            "pruned": portable_bytes(bitmap),
        }
        for key, shard, bitmap in zip(keys, layout.shards, skip_list.pruned, strict=True)
    ]
    for row, shard, weights in zip(rows, layout.shards, skip_list.weights_per_shard(), strict=True):
        if weights is not None:
            row["weights"] = weights
        if layout.knows_content:
            row["content"] = shard.content
    return rows


def _content(rows: list[_Row]) -> str:
    """Hex sha256 of the raw rows: it vouches for a bitmap's bytes before they are deserialized."""
    sha = hashlib.sha256()
    for row in rows:
        plain = [row[name] for name in ("stream", "shard", "bytes", "samples", "kept", "content") if name in row]
        weights = [np.asarray(row["weights"], dtype="<f4")] if "weights" in row else []
        sha.update(json.dumps([*plain, len(row["pruned"]), *map(len, weights)]).encode())
        sha.update(row["pruned"])
        for values in weights:
            sha.update(values.tobytes())
    return sha.hexdigest()


def _checksum(metadata: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _agree(what: str, found: object, written: object) -> None:
    if found != written:
        raise SkipListError(f"{what} is {found}, the file says {written}; the file is damaged: {_AGAIN}")


def _inline(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name}: {column.type}" + " or null" * column.nullable for column in schema)
