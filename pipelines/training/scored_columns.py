"""What a pass over a dataset writes: columns as memory-mapped files, filled in chunks that are marked when done."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.files import write_bytes

__all__ = ["LABELS", "ScoredColumns"]

LABELS = "labels"
CHUNK = 4096  # rows at most
CHUNKS = 32  # at least, where there are so many rows, so that ranks have something to share


class ScoredColumns:
    """A folder with one ``.npy`` file (rows, …) per column, and an empty file per chunk of rows that is done.

    Several processes may write chunks of their own at once, on any nodes that share the folder: every file is made by
    whoever comes first, with the same bytes, and rows are written where they belong.

    Args:
        folder: local; made when the first rows are written.
        rows: of every column.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.chunk = max(1, min(CHUNK, -(-rows // CHUNKS)))
        self._files: dict[str, tuple[int, int, tuple[int, ...]]] = {}  # descriptor, bytes of the header, shape

    # Chunks ------------------------------------------------------------------------------------------------------

    @property
    def num_chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.rows // self.chunk)

    def rows_of(self, chunk: int) -> range:
        """The rows of a chunk."""
        return range(chunk * self.chunk, min(self.rows, (chunk + 1) * self.chunk))

    def remaining(self) -> list[int]:
        """The chunks that are not done."""
        return [chunk for chunk in range(self.num_chunks) if not self._mark(chunk).exists()]

    def seconds(self) -> float:
        """What the chunks took that are done, one after the other."""
        return sum(float(mark.read_text()) for mark in self.folder.glob("done-*"))

    def done(self, chunk: int, seconds: float) -> None:
        """Mark a chunk, once its rows are on the disk."""
        for file, _, _ in self._files.values():
            os.fsync(file)
        write_bytes(str(self._mark(chunk)), repr(seconds).encode())

    def _mark(self, chunk: int) -> Path:
        return self.folder / f"done-{chunk:06d}"

    # Rows --------------------------------------------------------------------------------------------------------

    def write(self, start: int, parts: Mapping[str, NDArray[Any]]) -> None:
        """Write consecutive rows.

        Args:
            start: the first of them.
            parts: (n, …) by column; the same columns, shapes and dtypes every time.

        Raises:
            ValueError: if a column has another shape than before.
        """
        for name, part in parts.items():
            file, header, shape = self._file(name, part)
            if part.shape[1:] != shape:
                raise ValueError(
                    f"what is written of a sample as {name!r} has shape {part.shape[1:]}, before it had {shape}; it "
                    "must be the same for every sample."
                )
            data = np.ascontiguousarray(part).tobytes()
            at = header + start * (len(data) // max(1, len(part)))
            while data:
                written = os.pwrite(file, data, at)
                data, at = data[written:], at + written

    def _file(self, name: str, part: NDArray[Any]) -> tuple[int, int, tuple[int, ...]]:
        if name not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            shape = (self.rows, *part.shape[1:])
            described = {"descr": part.dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, described)
            file = os.open(self.folder / f"{name}.npy", os.O_RDWR | os.O_CREAT, 0o644)
            os.pwrite(file, header.getvalue(), 0)
            size = len(header.getvalue()) + part.dtype.itemsize * int(np.prod(shape))
            if os.fstat(file).st_size < size:
                os.ftruncate(file, size)
            self._files[name] = (file, len(header.getvalue()), part.shape[1:])
        return self._files[name]

    def close(self) -> None:
        """Close what is written to."""
        for file, _, _ in self._files.values():
            os.close(file)
        self._files = {}

    def columns(self) -> dict[str, NDArray[Any]]:
        """(rows, …) by name, memory-mapped for reading; labels, where there are any, among them."""
        return {path.stem: np.load(path, mmap_mode="r") for path in self._paths()}

    def _paths(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("*.npy"))
