"""The scores of a dataset's samples as a Parquet file, and where they come from; read only if every part agrees."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from warnings import warn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ted_stream.export.places import place_columns
from ted_stream.files import read_bytes, write_bytes
from ted_stream.skip_list import DatasetLayout
from ted_stream.skip_list.kinds import kind_of

__all__ = ["Scores", "ScoresError", "read_scores", "write_scores"]

_VERSION, _VERSION_WITH_SHAPE = "1", "2"  # the second where the fingerprint takes in the content of shards
_PREFIX = "ted_stream.scores."
_PROVENANCE = "provenance."
_FIELDS = {"format_version", "fingerprint", "samples", "digest", "checksum"}
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("stream", _TEXT, nullable=False),
        pa.field("shard", _TEXT, nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("label", pa.int64()),
    ]
)
_AGAIN = "copy or write the file again"


class ScoresError(ValueError):
    """Scores or their file cannot be trusted; the message holds both values and the fix."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a file of scores holds, N samples in the order of their global ids.

    Attributes:
        scores: (N,) float32, NaN where a sample has none; read-only.
        labels: (N,) int64, the class of each, read-only; ``None`` where the file has none.
        keys: N names, as the dataset has them, ``None`` for a sample without one; ``None`` where the file has none.
        provenance: where the scores come from, as it was given.
        fingerprint: of the dataset that was scored.
        digest: hex sha256 of the samples and their scores, labels and keys; the same in any order of the streams.
    """

    scores: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    keys: tuple[str | None, ...] | None = field(default=None, repr=False)
    provenance: Mapping[str, str]
    fingerprint: str
    digest: str

    def __len__(self) -> int:
        return len(self.scores)


def write_scores(
    path: str | os.PathLike[str],
    layout: DatasetLayout,
    scores: NDArray[np.floating],
    *,
    labels: NDArray[np.integer] | None = None,
    keys: Sequence[str | None] | None = None,
    provenance: Mapping[str, str],
) -> None:
    """Write one row per sample, in the dataset's order; whole or not at all.

    Columns: ``sample_id`` (int64, global), ``stream``, ``shard`` (strings, as in the skip-list), ``position`` (int64,
    within the shard), ``key`` (string or null), ``score`` (float32, null where unknown), ``label`` (int64 or null).

    Args:
        path: local path or URI.
        layout: of the dataset.
        scores: (N,) numbers, finite as float32, or NaN where unknown.
        labels: (N,) whole numbers; for classes with names, their numbers.
        keys: N names of samples.
        provenance: text by name: the method's repr, the settings, the epochs, the seed.

    Raises:
        ScoresError: if something does not fit the layout, or has a value or type that the file cannot hold.
        OSError: if the file cannot be written; a file that was there before is unchanged.
    """
    scores = np.asarray(scores)
    for name, given in (("scores", scores), ("labels", labels), ("keys", keys)):
        if given is not None and len(given) != layout.num_samples:
            raise ScoresError(f"{len(given)} {name} do not fit a dataset of {layout.num_samples} samples.")
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    if scores.ndim != 1 or np.isinf(scores).any():
        raise ScoresError(
            f"scores have shape {scores.shape} and {np.isinf(scores).sum()} infinite values as float32; give one "
            "finite number per sample, NaN where it is unknown."
        )
    if labels is not None and (np.ndim(labels) != 1 or not np.issubdtype(np.asarray(labels).dtype, np.integer)):
        raise ScoresError(f"labels are of {np.asarray(labels).dtype}; give whole numbers, of named classes too.")
    if not all(isinstance(text, str) for item in provenance.items() for text in item):
        raise ScoresError(f"provenance is {dict(provenance)!r}; give text by name, such as repr(method).")
    try:
        table = pa.table(
            {
                **place_columns(layout, np.arange(len(scores))),
                "key": pa.array([None] * len(scores) if keys is None else keys, pa.string()),
                "score": pa.array(scores, pa.float32(), mask=np.isnan(scores)),
                "label": pa.nulls(len(scores), pa.int64()) if labels is None else pa.array(labels, pa.int64()),
            },
            schema=_SCHEMA,
        )
        metadata = {
            "format_version": _VERSION_WITH_SHAPE if layout.knows_content else _VERSION,
            "fingerprint": layout.fingerprint,
            "samples": str(len(scores)),
            "digest": _digest(_shards_of(table), layout.fingerprint),
            **{_PROVENANCE + name: text for name, text in provenance.items()},
        } | ({"shape": layout.shape} if layout.knows_content else {})
        metadata["checksum"] = _checksum(metadata)
        table = table.replace_schema_metadata({_PREFIX + name: text for name, text in metadata.items()})
    except (UnicodeEncodeError, pa.ArrowException, TypeError) as error:
        raise ScoresError(f"keys, labels or provenance cannot be stored: {error}") from error
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_scores(path: str | os.PathLike[str], layout: DatasetLayout | None = None) -> Scores:
    """Read a file of scores, and check every part of it against the others.

    Args:
        path: local path or URI.
        layout: of the dataset that the scores must belong to; the result has its order of streams. Scores that were
            made without the content of shards are matched by names, sizes and sample counts, with a warning.

    Raises:
        FileNotFoundError: if there is no such file.
        ScoresError: if the file is damaged, of another kind or version, or its scores are of another dataset.
    """
    data, source = read_bytes(path), os.fspath(path)
    try:
        return _read(data, layout)
    except ScoresError as error:
        raise ScoresError(f"scores {source!r}: {error}") from error
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise ScoresError(f"scores {source!r}: {error}; the file is damaged: {_AGAIN}") from error


def _read(data: bytes, layout: DatasetLayout | None) -> Scores:
    if len(data) < 12 or data[:4] != b"PAR1" or data[-4:] != b"PAR1":
        raise ScoresError(
            f"these {len(data)} bytes are no whole Parquet file; it is cut off or something else: {_AGAIN}"
        )
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    metadata = _checked_metadata(file.metadata.metadata or {})
    if not file.schema_arrow.equals(_SCHEMA):
        raise ScoresError(f"columns are {file.schema_arrow.names} or of other types than {_SCHEMA.names}; {_AGAIN}")
    keys = None if layout is None else _keys_in(metadata, layout)
    table = file.read(use_threads=False)
    _agree("number of samples", str(len(table)), metadata["samples"])
    if not np.array_equal(table["sample_id"].to_numpy(), np.arange(len(table))):
        raise ScoresError(f"the sample ids are not those from 0 to {len(table) - 1} in order; {_AGAIN}")
    shards = list(_shards_of(table))
    _agree("digest", _digest(shards, metadata["fingerprint"]), metadata["digest"])
    if layout is not None and keys is not None:
        table = _aligned(table, shards, layout, keys)
    score, label, key = (table[name].combine_chunks() for name in ("score", "label", "key"))
    scores = score.to_numpy(zero_copy_only=False).astype(np.float32)
    if np.isinf(scores).any() or np.count_nonzero(np.isnan(scores)) != score.null_count:
        raise ScoresError(f"scores hold infinities or NaN, where an unknown score is null; {_AGAIN}")
    if label.null_count not in (0, len(table)):
        raise ScoresError(f"{label.null_count} of {len(table)} samples have no label; {_AGAIN}")
    labels = None if label.null_count else label.to_numpy().copy()
    for array in (scores, labels):
        if array is not None:
            array.flags.writeable = False
    return Scores(
        scores=scores,
        labels=labels,
        keys=None if key.null_count == len(table) else tuple(key.to_pylist()),
        provenance={k.removeprefix(_PROVENANCE): v for k, v in metadata.items() if k.startswith(_PROVENANCE)},
        fingerprint=metadata["fingerprint"],
        digest=metadata["digest"],
    )


def _checked_metadata(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """Our entries, without prefix, once kind, version and checksum are right."""
    prefix = _PREFIX.encode()
    ours = {k.removeprefix(prefix).decode(): v.decode() for k, v in raw.items() if k.startswith(prefix)}
    if not ours:
        kind = kind_of(raw) or "another Parquet file"
        raise ScoresError(f"this is {kind}, not a file of scores; check the path")
    version = ours.get("format_version")
    if version not in (_VERSION, _VERSION_WITH_SHAPE):
        raise ScoresError(
            f"format version {version} found, {_VERSION} and {_VERSION_WITH_SHAPE} supported; use the ted-stream "
            "release that wrote the file"
        )
    found = {name for name in ours if not name.startswith(_PROVENANCE)}
    fields = _FIELDS | ({"shape"} if version == _VERSION_WITH_SHAPE else set())
    if found != fields:
        raise ScoresError(f"metadata has the entries {sorted(found)} instead of {sorted(fields)}; {_AGAIN}")
    checksum = ours.pop("checksum")
    _agree("checksum of the metadata", _checksum(ours), checksum)
    return ours


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """The rows of one shard."""

    stream: str
    name: str
    rows: slice
    table: pa.Table = field(repr=False)

    @property
    def samples(self) -> int:
        return self.rows.stop - self.rows.start


def _shards_of(table: pa.Table) -> Iterator[_Shard]:
    """The shards, whose rows are told apart by positions that begin anew.

    Raises:
        ScoresError: if a shard's rows are of two names, or not at positions 0, 1, …
    """
    positions = table["position"].to_numpy()
    starts = np.flatnonzero(positions == 0)
    if len(starts) == 0 or starts[0]:
        raise ScoresError(f"the first row is at position {positions[:1].tolist()} of its shard, not 0; {_AGAIN}")
    lengths = np.diff(starts, append=len(positions))
    wrong = positions != np.arange(len(positions)) - np.repeat(starts, lengths)
    # Compared as numbers of the words: chunks may have dictionaries of their own.
    words = {name: table[name].cast(pa.string()).combine_chunks().dictionary_encode() for name in ("stream", "shard")}
    for of_row in words.values():
        numbers = of_row.indices.to_numpy()
        wrong |= numbers != np.repeat(numbers[starts], lengths)
    if wrong.any():
        raise ScoresError(f"row {int(wrong.argmax())} is not where the rows before it put it in its shard; {_AGAIN}")
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        stream, name = (words[column][start].as_py() for column in ("stream", "shard"))
        yield _Shard(stream=stream, name=name, rows=slice(start, start + length), table=table.slice(start, length))


def _digest(shards: Iterator[_Shard] | list[_Shard], fingerprint: str) -> str:
    """Hex sha256 of the samples and what is known of them, stream by stream in the order of their keys."""
    sha = hashlib.sha256(json.dumps([_VERSION, fingerprint]).encode())
    for shard in sorted(shards, key=lambda shard: shard.stream):  # stable: shards keep their order
        values = [shard.table[name].combine_chunks() for name in ("score", "label", "key")]
        score, label = (values[0].fill_null(np.nan), values[1].fill_null(0))
        header = [shard.stream, shard.name, shard.samples, *(column.null_count for column in values)]
        sha.update(json.dumps(header).encode())
        sha.update(score.to_numpy().astype("<f4").tobytes())
        if values[1].null_count != shard.samples:
            sha.update(label.to_numpy().astype("<i8").tobytes())
        if values[2].null_count != shard.samples:
            sha.update(json.dumps(values[2].to_pylist()).encode())
    return sha.hexdigest()


def _keys_in(metadata: Mapping[str, str], layout: DatasetLayout) -> tuple[str, ...]:
    """The keys that the streams of a dataset have in a file of scores.

    Raises:
        ScoresError: if the scores are of another dataset.
    """
    fingerprint = metadata["fingerprint"]
    if fingerprint == layout.fingerprint:
        return layout.stream_keys
    if fingerprint == layout.shape:
        warn(
            "The scores and the dataset agree in the names, sizes and sample counts of all shards. Whether their "
            "content is the same could not be checked: the scores were made without digests of it. If the data was "
            "made anew since, they are of other samples.",
            UserWarning,
            stacklevel=4,
        )
        return layout.shape_keys
    told = ""
    if metadata.get("shape") == layout.shape:
        told = ": the names, sizes and sample counts of all shards agree, but "
        told += "the content differs" if layout.knows_content else "this dataset has no digests of their content"
    raise ScoresError(
        f"they are of dataset {fingerprint}, this one is {layout.fingerprint}{told}; use the scores of this dataset, "
        "or score it"
    )


def _aligned(table: pa.Table, shards: list[_Shard], layout: DatasetLayout, keys: tuple[str, ...]) -> pa.Table:
    """The rows in the layout's order of streams.

    Raises:
        ScoresError: if the shards are not the layout's.
    """
    of_stream: dict[str, list[_Shard]] = {}
    for shard in shards:
        of_stream.setdefault(shard.stream, []).append(shard)
    expected = {
        key: [(shard.name, shard.samples) for shard in stream.shards]
        for key, stream in zip(keys, layout.streams, strict=True)
    }
    found: dict[str, list[Any]] = {key: [(s.name, s.samples) for s in group] for key, group in of_stream.items()}
    if found != expected:
        raise ScoresError(f"its rows are of other shards than those of the dataset that it names; {_AGAIN}")
    if list(of_stream) == list(keys):
        return table
    return pa.concat_tables([shard.table for key in keys for shard in of_stream[key]])


def _checksum(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _agree(what: str, found: str, written: str) -> None:
    if found != written:
        raise ScoresError(f"{what} is {found}, the file says {written}; the file is damaged: {_AGAIN}")
