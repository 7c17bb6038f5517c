"""Roaring bitmaps to and from arrays and bytes, without a Python step per sample."""

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pyroaring import AbstractBitMap, BitMap, FrozenBitMap

from ted_stream.skip_list.errors import SkipListError
from ted_stream.skip_list.layout import DatasetLayout


def bitmap_of(positions: npt.NDArray[np.integer]) -> FrozenBitMap:
    """Bitmap of ``positions``: integers in [0, 2**32), shape (n,)."""
    return FrozenBitMap(array("I", positions.astype(np.uint32).tobytes()))


def positions_of(bitmap: AbstractBitMap) -> npt.NDArray[np.uint32]:
    """Positions in ``bitmap``, ascending: uint32, shape (n,)."""
    return np.asarray(bitmap.to_array(), dtype=np.uint32)


def portable_bytes(bitmap: AbstractBitMap) -> bytes:
    """Bytes of ``bitmap`` in Roaring's portable serialization, with runs where they are smaller."""
    copy = BitMap(bitmap)
    copy.run_optimize()
    return copy.serialize()


def check_bitmaps(layout: DatasetLayout, pruned: Sequence[AbstractBitMap]) -> None:
    """Refuse bitmaps of pruned positions that are not one for each shard, within its samples.

    Raises:
        SkipListError: There are more or fewer, or a position is not in its shard.
    """
    if len(pruned) != layout.num_shards:
        raise SkipListError(f"{len(pruned)} bitmaps for {layout.num_shards} shards; give one each, in layout order")
    for shard, bitmap in zip(layout.shards, pruned, strict=True):
        if bitmap and bitmap.max() >= shard.samples:
            raise SkipListError(
                f"position {bitmap.max()} is pruned in shard {shard.name!r}, "
                f"which has {shard.samples} samples; positions count from 0 within each shard"
            )


def bitmaps_of_ids(layout: DatasetLayout, pruned_ids: npt.NDArray[np.integer]) -> tuple[FrozenBitMap, ...]:
    """A bitmap of pruned positions per shard; arguments and errors are those of `SkipList.from_pruned_ids`."""
    ids = np.asarray(pruned_ids)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
        raise SkipListError(f"pruned_ids has shape {ids.shape} and dtype {ids.dtype}; give integers, shape (n,)")
    ids = np.sort(ids)
    if ids.size and not (ids[0] >= 0 and ids[-1] < layout.num_samples):
        raise SkipListError(
            f"pruned_ids runs from {ids[0]} to {ids[-1]}, outside [0, {layout.num_samples}), the ids of this dataset"
        )
    ids = ids.astype(np.int64, copy=False)
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if repeated.size:
        raise SkipListError(f"pruned_ids repeats {repeated.size} ids, the first {repeated[0]}; give each id once")
    offsets = layout.shard_offsets
    parts = np.split(ids, np.searchsorted(ids, offsets[1:]))
    return tuple(bitmap_of(part - start) for part, start in zip(parts, offsets, strict=True))


def bitmaps_of_bits(layout: DatasetLayout, bits: npt.NDArray[np.uint8]) -> tuple[FrozenBitMap, ...]:
    """A bitmap of pruned positions per shard; arguments and errors are those of `SkipList.from_keep_bits`."""
    bits = np.asarray(bits)
    shape = (-(-layout.num_samples // 8),)
    if bits.shape != shape or bits.dtype != np.uint8:
        raise SkipListError(f"bits have shape {bits.shape} and dtype {bits.dtype}; give uint8, shape {shape}")
    pruned = []
    for shard, start in zip(layout.shards, layout.shard_offsets.tolist(), strict=True):
        first, shift = divmod(start, 8)
        stop = start + shard.samples
        keep = np.unpackbits(bits[first : -(-stop // 8)], count=stop - 8 * first)[shift:]
        pruned.append(bitmap_of(np.flatnonzero(keep == 0)))
    return tuple(pruned)
