"""Where samples are: the columns that every list of samples has."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ted_stream.skip_list import DatasetLayout

__all__ = ["place_columns"]


def place_columns(layout: DatasetLayout, ids: NDArray[np.int64]) -> dict[str, pa.Array]:
    """``sample_id``, ``stream``, ``shard`` and ``position`` of samples, as a skip-list names them.

    Args:
        layout: of the dataset.
        ids: (n,) int64 global ids, in any order.

    Returns:
        (n,) each: int64, dictionaries of strings, and int64 within the shard.
    """
    shard = np.searchsorted(layout.shard_offsets, ids, side="right") - 1
    streams = np.repeat(np.arange(len(layout.streams)), [len(stream.shards) for stream in layout.streams])
    names, positions = list(dict.fromkeys(shard.name for shard in layout.shards)), ids - layout.shard_offsets[shard]
    number = {name: at for at, name in enumerate(names)}
    name_of_shard = np.array([number[shard.name] for shard in layout.shards])
    return {
        "sample_id": pa.array(ids, pa.int64()),
        "stream": _strings(streams[shard], layout.stream_keys),
        "shard": _strings(name_of_shard[shard], names),
        "position": pa.array(positions, pa.int64()),
    }


def _strings(numbers: NDArray[np.int64], words: list[str] | tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(words, pa.string()))
