"""Decoding of MDS samples with the encodings looked up once, and not for every value of every sample."""

import struct
from typing import Any

from streaming.base.format.mds.encodings import _get_coder
from streaming.base.format.mds.reader import MDSReader

__all__ = ["MDSDecoder"]


class MDSDecoder:
    """Decodes as ``MDSReader.decode_sample`` does.

    Args:
        shard: reader of the shard.
    """

    def __init__(self, shard: MDSReader) -> None:
        # Not the shard, which has this as an attribute: only a collection of garbage would end the two.
        self._rows = shard.column_names, shard.column_sizes, shard.column_encodings
        self._sizes = f"<{sum(not size for size in shard.column_sizes)}I"
        self._columns: list[tuple[str, int | None, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_columns": None}

    def __call__(self, data: bytes) -> dict[str, Any]:
        """Decode a sample.

        Args:
            data: the sizes of its columns of variable size, each a little-endian uint32, and the columns' bytes.

        Raises:
            ValueError: if a column has an encoding that streaming does not know.
        """
        if self._columns is None:
            self._columns = self._look_up()
        sizes = iter(struct.unpack_from(self._sizes, data))
        sample, begin = {}, struct.calcsize(self._sizes)
        for name, size, decode in self._columns:
            end = begin + (size or next(sizes))
            sample[name] = decode(data[begin:end])
            begin = end
        return sample

    def _look_up(self) -> list[tuple[str, int | None, Any]]:
        columns = []
        for name, size, encoding in zip(*self._rows, strict=True):
            coder = _get_coder(encoding)
            if coder is None:
                raise ValueError(f"The column {name!r} has the encoding {encoding!r}, which streaming does not know.")
            columns.append((name, size, coder.decode))
        return columns
