"""The rows of a manifest: of each sample where it is, what it is called, and what the run knows of it."""

import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ted_stream.export.origins import Origins
from ted_stream.export.places import place_columns
from ted_stream.export.selected import Progress, Selected

__all__ = ["PLAIN", "SCHEMA", "RowsDigest", "rows_of"]

_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("stream", _TEXT, nullable=False),
        pa.field("shard", _TEXT, nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("file", pa.string()),
        pa.field("key", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("score", pa.float32()),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("times_kept", pa.int32()),
        pa.field("weight", pa.float32()),
    ]
)
# As files have it.
PLAIN = pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in SCHEMA])


def rows_of(
    selected: Selected, origins: Origins, *, all_samples: bool = False, progress: Progress = lambda *_: None
) -> Iterator[pa.RecordBatch]:
    """Rows of `SCHEMA` by ascending id, tens of thousands at once.

    Args:
        selected: the samples that are kept.
        origins: of the same dataset.
        all_samples: rows of those that are not kept, too.
        progress: of the stage ``rows``, in samples of the dataset.
    """
    begin, weighed = 0, 0
    progress("rows", 0, selected.num_samples)
    for names in origins.batches():
        keep = selected.keep[begin : begin + len(names)]
        taken = np.arange(len(keep)) if all_samples else np.flatnonzero(keep)
        kept, ids = keep[taken], begin + taken
        count = int(np.count_nonzero(keep))
        weights = np.full(len(taken), np.nan, np.float32)
        if selected.weights is not None:
            weights[kept] = selected.weights[weighed : weighed + count]
        elif selected.epoch is not None:
            weights[kept] = 1
        scores, times = (None if of is None else of[ids] for of in (selected.scores, selected.times_kept))
        columns = {
            **place_columns(selected.layout, ids),
            **dict(zip(names.schema.names, names.take(pa.array(taken)).columns, strict=True)),
            "score": _or_null(scores, len(taken), pa.float32()),
            "kept": pa.array(kept),
            "times_kept": _or_null(times, len(taken), pa.int32()),
            "weight": _or_null(weights, len(taken), pa.float32()),
        }
        if len(taken):
            yield pa.record_batch(columns, schema=SCHEMA)
        begin, weighed = begin + len(names), weighed + count
        progress("rows", begin, selected.num_samples)


def _or_null(values: NDArray[np.generic] | None, size: int, kind: pa.DataType) -> pa.Array:
    """Null where there are none, or they are NaN."""
    if values is None:
        return pa.nulls(size, kind)
    return pa.array(values, kind, mask=np.isnan(values) if values.dtype.kind == "f" else None)


class RowsDigest:
    """A digest of rows of `SCHEMA`: the same however they are cut into batches."""

    def __init__(self) -> None:
        # Of each column apart, and of its parts: which are null, the values or the lengths of texts, the texts.
        self._columns = {name: tuple(hashlib.sha256() for _ in range(3)) for name in SCHEMA.names}
        self.rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Take in the next rows."""
        self.rows += len(batch)
        for name, (valid, values, texts) in self._columns.items():
            column = batch.column(name)
            valid.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
            if column.type in (_TEXT, pa.string()):
                lengths, text = _text_of(column.cast(pa.string()).fill_null(""))
                values.update(lengths.tobytes())
                texts.update(text)
            else:
                numbers = column.fill_null(False if column.type == pa.bool_() else 0).to_numpy(zero_copy_only=False)
                values.update(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes())

    def hexdigest(self, metadata: Mapping[str, str]) -> str:
        """Hex sha256 of the rows and of what a manifest says of them."""
        columns = {name: [part.hexdigest() for part in parts] for name, parts in self._columns.items()}
        return hashlib.sha256(json.dumps([metadata, columns], sort_keys=True).encode()).hexdigest()


def _text_of(column: pa.StringArray) -> tuple[NDArray[np.int32], bytes]:
    """The length of each text in bytes, and all of them behind each other."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset)
    text = b"" if data is None else memoryview(data)[ends[0] : ends[-1]].tobytes()
    return np.diff(ends).astype("<i4"), text
