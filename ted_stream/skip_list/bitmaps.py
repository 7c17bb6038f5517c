"""Roaring bitmaps to and from arrays and bytes, without a Python step per sample."""

from array import array

import numpy as np
import numpy.typing as npt
from pyroaring import AbstractBitMap, BitMap, FrozenBitMap


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
