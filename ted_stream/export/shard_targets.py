"""The kept samples of one shard as the file of another format: a function per format."""

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ted_stream.export.mds_values import Column, columns_of, split
from ted_stream.export.shard_samples import Samples, digest_of

__all__ = ["TARGETS", "Made", "Target"]

Entry = Mapping[str, Any]
"""What an index says of a shard."""
Made = tuple[bytes, Entry | None]
"""The bytes of a file, and its entry in an index where the format has one."""

_END_OF_TAR = bytes(1024)
_LONGEST = tarfile.LENGTH_NAME  # characters of a member's name
_EXTENSIONS = {  # of the members that webdataset makes of columns
    **{"integer": "cls", "float": "json", "array": "npy"},
    **{"bytes": "bin", "str": "txt", "json": "json", "jpeg": "jpg", "png": "png"},
}
_OF_PARQUET = tuple(_EXTENSIONS)
_IMAGES = ("jpeg", "png")


@dataclass(frozen=True, kw_only=True)
class Target:
    """How shards are copied.

    Attributes:
        check: refuses a shard, by its entry in the index, that cannot be copied so: with a ValueError.
        name: of the file, by the entry, its number among the files of its stream, and how many there are.
        make: the file, of samples at ascending positions whose ids begin with that of the shard's first sample.
    """

    check: Callable[[Entry], None]
    name: Callable[[Entry, int, int], str]
    make: Callable[[Entry, Samples, NDArray[np.int64], int], Made]


# Streaming's shards.


def _check_mds(entry: Entry) -> None:
    if entry["format"] != "mds":
        raise ValueError(
            f"the shard {entry['raw_data']['basename']} is of format {entry['format']!r}, and only MDS shards are "
            f"copied as such{'; --to webdataset copies tars' if entry['format'] == 'tar' else ''}."
        )


def _name_mds(entry: Entry, number: int, count: int) -> str:
    del number, count
    return (entry["zip_data"] or entry["raw_data"])["basename"]


def _make_mds(entry: Entry, samples: Samples, positions: NDArray[np.int64], first_id: int) -> Made:
    del first_id
    count, sizes = len(positions), np.diff(samples.offsets)[positions]
    offsets = 4 * (count + 2) + len(samples.head) + np.concatenate(([0], np.cumsum(sizes)))
    table = np.concatenate(([count], offsets)).astype("<u4").tobytes()
    data = b"".join([table, samples.head, *samples.runs(positions)])
    made = {**entry, "samples": count, "raw_data": _described(entry["raw_data"], data)}
    if not entry["zip_data"]:
        return data, made
    from ted_stream.reading.codecs import compress

    data = compress(entry["compression"], data)
    return data, {**made, "zip_data": _described(entry["zip_data"], data)}


def _described(file: Entry, data: bytes) -> Entry:
    """As an index describes a file with these bytes, of the name and with the hashes of another."""
    hashes = {kind: digest_of(kind, data) for kind in file["hashes"]}
    return {"basename": file["basename"], "bytes": len(data), "hashes": hashes}


# WebDataset's tars.


def _check_webdataset(entry: Entry) -> None:
    if entry["format"] == "tar":
        return
    _check_columns(entry, _EXTENSIONS, "webdataset")
    names = [column.name.lower() for column in columns_of(entry)]
    odd = next((name for name in names if not re.fullmatch("[a-z0-9][a-z0-9_-]*", name) or names.count(name) > 1), None)
    if odd is not None:
        raise ValueError(
            f"the column {odd!r} cannot be an extension of webdataset, which takes letters without case, digits, - and "
            "_: write the dataset with other column names, or copy it with --to mds."
        )
    for column in columns_of(entry):
        excess = len(_member_name(0, column)) - _LONGEST
        if excess > 0:
            raise ValueError(
                f"the column {column.name!r} has a name of {len(column.name)} characters, and tars have room for "
                f"{len(column.name) - excess}: write the dataset with a shorter one, or copy it with --to mds."
            )


def _name_webdataset(entry: Entry, number: int, count: int) -> str:
    del number, count
    name = entry["raw_data"]["basename"]
    return name if entry["format"] == "tar" else f"{name.removesuffix('.mds')}.tar"


def _make_webdataset(entry: Entry, samples: Samples, positions: NDArray[np.int64], first_id: int) -> Made:
    if entry["format"] == "tar":
        return b"".join([*samples.runs(positions), _END_OF_TAR]), None
    columns, file = columns_of(entry), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for position, values in zip(positions.tolist(), split(samples.each(positions), columns), strict=True):
            for column, value in zip(columns, values, strict=True):
                member, content = tarfile.TarInfo(_member_name(first_id + position, column)), _member(column, value)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue(), None


def _member_name(sample: int, column: Column) -> str:
    return f"{sample:012}.{column.name.lower()}.{_EXTENSIONS[column.kind]}"


def _member(column: Column, value: bytes) -> bytes:
    if column.kind == "array":
        file = io.BytesIO()
        np.save(file, column.array(value))
        return file.getvalue()
    if column.kind in ("integer", "float"):
        return json.dumps(np.frombuffer(value, column.dtype)[0].item()).encode()
    return value


# Parquet, as Hugging Face's datasets reads it.


def _check_parquet(entry: Entry) -> None:
    if entry["format"] == "tar":
        raise ValueError(
            f"the shard {entry['raw_data']['basename']} is a tar, which has no columns; --to webdataset copies it, and "
            "load_dataset('webdataset', data_files=…) reads that."
        )
    _check_columns(entry, _OF_PARQUET, "hf")


def _name_parquet(entry: Entry, number: int, count: int) -> str:
    del entry
    return f"data/train-{number:05}-of-{count:05}.parquet"


def _make_parquet(entry: Entry, samples: Samples, positions: NDArray[np.int64], first_id: int) -> Made:
    del first_id
    columns = columns_of(entry)
    values = zip(*split(samples.each(positions), columns), strict=True)
    made = {column.name: _arrow(column, of) for column, of in zip(columns, values, strict=True)}
    images = {column.name: {"_type": "Image"} for column in columns if column.kind in _IMAGES}
    metadata = {"huggingface": json.dumps({"info": {"features": images}})} if images else None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(made, metadata=metadata), sink)
    return sink.getvalue().to_pybytes(), None


def _arrow(column: Column, values: Sequence[bytes]) -> pa.Array | pa.ChunkedArray:
    if column.kind in _IMAGES:
        fields = [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
        return pa.array([{"bytes": value, "path": None} for value in values], pa.struct(fields))
    if column.kind in ("str", "json"):
        return pa.array([value.decode() for value in values], pa.string())
    if column.kind == "bytes":
        return pa.array(values, pa.binary())
    if column.kind == "array" and column.shape is None:
        return _lists(column, [column.array(value) for value in values])
    found: pa.Array = pa.array(np.frombuffer(b"".join(values), column.dtype))
    for length in reversed(column.shape or ()):
        found = pa.FixedSizeListArray.from_arrays(found, length)
    return found


def _lists(column: Column, values: Sequence[NDArray[Any]]) -> pa.Array:
    odd = next((value for value in values if value.ndim != 1), None)
    if odd is not None:
        raise ValueError(
            f"the column {column.name!r} ({column.encoding}) has an array of shape {odd.shape}, and only arrays of one "
            "axis, or of one shape that the encoding names, are lists of Parquet; copy the dataset with --to mds."
        )
    offsets = np.concatenate(([0], np.cumsum([len(value) for value in values])))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(values)))


def _check_columns(entry: Entry, kinds: Sequence[str] | Mapping[str, str], to: str) -> None:
    if entry["format"] != "mds":
        _check_mds(entry)
    odd = [f"{column.name} ({column.encoding})" for column in columns_of(entry) if column.kind not in kinds]
    if odd:
        raise ValueError(
            f"--to {to} has nothing for the columns {', '.join(odd)}: there is something for bytes, str, json, jpeg, "
            "png, numbers of fixed size, and ndarray with a dtype. Copy the dataset with --to mds."
        )


TARGETS = {
    "mds": Target(check=_check_mds, name=_name_mds, make=_make_mds),
    "webdataset": Target(check=_check_webdataset, name=_name_webdataset, make=_make_webdataset),
    "hf": Target(check=_check_parquet, name=_name_parquet, make=_make_parquet),
}
"""By the name that ``--to`` takes."""
