"""The list of what mattered: kept samples with their scores, as a Parquet file that any tool reads."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ted_stream.export.places import place_columns
from ted_stream.files import write_bytes
from ted_stream.skip_list import SkipList

__all__ = ["write_manifest"]


def write_manifest(path: str | os.PathLike[str], skip_list: SkipList, scores: NDArray[np.float32]) -> None:
    """Write one row per kept sample, in the dataset's order.

    Columns: ``sample_id`` (int64, global), ``stream``, ``shard`` (strings, as in the skip-list), ``position``
    (int64, within the shard), ``score`` (float32, null where the sample was never measured).

    Args:
        path: local path or URI.
        skip_list: whose kept samples are listed.
        scores: (N,) float32 running scores, NaN where never measured.

    Raises:
        ValueError: if there is not one score per sample.
    """
    if len(scores) != skip_list.num_samples:
        raise ValueError(f"{len(scores)} scores do not fit a skip-list of {skip_list.num_samples} samples.")
    kept = np.flatnonzero(skip_list.keep_mask())
    kept_scores = scores[kept]
    table = pa.table(
        {
            **place_columns(skip_list.layout, kept),
            "score": pa.array(kept_scores, pa.float32(), mask=np.isnan(kept_scores)),
        },
        metadata={"ted_stream.method": skip_list.method, "ted_stream.skip_list_digest": skip_list.digest},
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(path, buffer.getvalue())
