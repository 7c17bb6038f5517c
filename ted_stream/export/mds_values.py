"""The columns of MDS samples as other formats have them, from their bytes and without streaming."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Column", "columns_of", "split"]

_SIZED = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_INTEGERS = {"int": "int64", **dict(zip(_SIZED, _SIZED, strict=True))}
_FLOATS = ("float16", "float32", "float64")
_ARRAYS = {*_INTEGERS.values(), *_FLOATS}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column and how its values are encoded.

    Attributes:
        name: of the column.
        encoding: streaming's word for it.
        size: bytes of a value; ``None`` where they differ.
        kind: ``integer``, ``float``, ``array``, or an encoding that is taken as it is: ``bytes``, ``str``, ``json``,
            ``jpeg``, ``png``; empty for any other.
        dtype: of numbers and arrays; empty for others.
        shape: of arrays, ``None`` where it is not the same for all.
    """

    name: str
    encoding: str
    size: int | None
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None

    def array(self, data: bytes) -> NDArray[Any]:
        """The array of a value of the kind ``array``, as streaming encodes it."""
        if self.shape is not None:
            return np.frombuffer(data, self.dtype).reshape(self.shape)
        # A byte with the number of axes and the logarithm of the bytes that a length takes, and the lengths.
        axes, width = data[0] >> 2, 1 << (data[0] & 3)
        shape = np.frombuffer(data, f"<u{width}", axes, 1)
        return np.frombuffer(data, self.dtype, offset=1 + axes * width).reshape(shape.tolist())


def columns_of(entry: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a shard by its entry in the index, in the order of a sample's bytes."""
    parts = (entry["column_names"], entry["column_encodings"], entry["column_sizes"])
    return tuple(_column(*part) for part in zip(*parts, strict=True))


def _column(name: str, encoding: str, size: int | None) -> Column:
    if encoding in _INTEGERS:
        return Column(name=name, encoding=encoding, size=size, kind="integer", dtype=_INTEGERS[encoding])
    if encoding in _FLOATS:
        return Column(name=name, encoding=encoding, size=size, kind="float", dtype=encoding)
    word, *parts = encoding.split(":")
    if word == "ndarray" and parts and parts[0] in _ARRAYS:
        shape = tuple(map(int, parts[1].split(","))) if len(parts) > 1 else None
        return Column(name=name, encoding=encoding, size=size, kind="array", dtype=parts[0], shape=shape)
    known = encoding if encoding in ("bytes", "str", "json", "jpeg", "png") else ""
    return Column(name=name, encoding=encoding, size=size, kind=known)


def split(samples: Iterator[bytes], columns: Sequence[Column]) -> Iterator[tuple[bytes, ...]]:
    """The bytes of each column of each sample: behind the sizes of those whose size differs, uint32 each."""
    sizes = struct.Struct(f"<{sum(column.size is None for column in columns)}I")
    for sample in samples:
        differing, begin, values = iter(sizes.unpack_from(sample)), sizes.size, []
        for column in columns:
            end = begin + (next(differing) if column.size is None else column.size)
            values.append(sample[begin:end])
            begin = end
        yield tuple(values)
