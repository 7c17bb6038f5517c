"""The skip-list as a value: which samples of which dataset are pruned in one epoch."""

import hashlib
import json
import operator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from pyroaring import AbstractBitMap, FrozenBitMap

from ted_stream.skip_list.bitmaps import bitmap_of, positions_of
from ted_stream.skip_list.difference import first_difference
from ted_stream.skip_list.errors import SkipListError
from ted_stream.skip_list.layout import DatasetLayout, ShardLayout
from ted_stream.skip_list.text import check_text
from ted_stream.skip_list.version import FORMAT_VERSION


@dataclass(frozen=True, kw_only=True)
class SkipList:
    """The samples that one epoch leaves out. Immutable, hashable, equal by value.

    Attributes:
        layout: The dataset that the list belongs to.
        pruned: A bitmap of pruned positions per shard, in layout order; kept as frozen copies.
        epoch: The epoch (0-based) in which this list is active.
        keep_ratio: The fraction of samples that the method was asked to keep, in [0, 1].
        method: Name of the pruning method.
        run: Name of the training run that made the list; no part of the digest.

    Raises:
        SkipListError: A value is out of its range, or the bitmaps do not fit the layout.
    """

    layout: DatasetLayout = field(repr=False)
    pruned: tuple[AbstractBitMap, ...] = field(repr=False)
    epoch: int
    keep_ratio: float
    method: str
    run: str

    def __post_init__(self) -> None:
        frozen = tuple(b if isinstance(b, FrozenBitMap) else FrozenBitMap(b) for b in self.pruned)
        object.__setattr__(self, "pruned", frozen)
        object.__setattr__(self, "epoch", operator.index(self.epoch))
        # Adding 0.0 turns -0.0 into 0.0: equal ratios must have equal digests.
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio) + 0.0)
        if self.epoch < 0:
            raise SkipListError(f"epoch is {self.epoch}; epochs count from 0")
        if not 0 <= self.keep_ratio <= 1:
            raise SkipListError(f"keep_ratio is {self.keep_ratio}, outside [0, 1]")
        check_text("method", self.method)
        check_text("run", self.run)
        if len(frozen) != self.layout.num_shards:
            raise SkipListError(
                f"{len(frozen)} bitmaps for {self.layout.num_shards} shards; give one each, in layout order"
            )
        for shard, bitmap in zip(self.layout.shards, frozen, strict=True):
            if bitmap and bitmap.max() >= shard.samples:
                raise SkipListError(
                    f"position {bitmap.max()} is pruned in shard {shard.name!r}, "
                    f"which has {shard.samples} samples; positions count from 0 within each shard"
                )

    @classmethod
    def from_pruned_ids(
        cls,
        layout: DatasetLayout,
        pruned_ids: npt.NDArray[np.integer],
        *,
        epoch: int,
        keep_ratio: float,
        method: str,
        run: str,
    ) -> "SkipList":
        """Make a skip-list from the global ids of the pruned samples.

        Args:
            layout: The dataset.
            pruned_ids: Unique ids in [0, layout.num_samples), in any order: integers, shape (n,).
            epoch: See the class.
            keep_ratio: See the class.
            method: See the class.
            run: See the class.

        Raises:
            SkipListError: An id is out of range or occurs twice, or the array is not of integers in one axis.
        """
        ids = np.asarray(pruned_ids)
        if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
            raise SkipListError(f"pruned_ids has shape {ids.shape} and dtype {ids.dtype}; give integers, shape (n,)")
        ids = np.sort(ids)
        if ids.size and not (ids[0] >= 0 and ids[-1] < layout.num_samples):
            raise SkipListError(
                f"pruned_ids runs from {ids[0]} to {ids[-1]}, outside [0, {layout.num_samples}), "
                "the ids of this dataset"
            )
        ids = ids.astype(np.int64, copy=False)
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if repeated.size:
            raise SkipListError(f"pruned_ids repeats {repeated.size} ids, the first {repeated[0]}; give each id once")
        offsets = layout.shard_offsets
        parts = np.split(ids, np.searchsorted(ids, offsets[1:]))
        pruned = tuple(bitmap_of(part - start) for part, start in zip(parts, offsets, strict=True))
        return cls(layout=layout, pruned=pruned, epoch=epoch, keep_ratio=keep_ratio, method=method, run=run)

    @classmethod
    def from_keep_mask(
        cls,
        layout: DatasetLayout,
        keep: npt.NDArray[np.bool_],
        *,
        epoch: int,
        keep_ratio: float,
        method: str,
        run: str,
    ) -> "SkipList":
        """Make a skip-list from a mask over global ids: bool, shape (layout.num_samples,), True where kept.

        Raises:
            SkipListError: The mask has another shape or dtype.
        """
        keep = np.asarray(keep)
        if keep.shape != (layout.num_samples,) or keep.dtype != np.bool_:
            raise SkipListError(
                f"keep has shape {keep.shape} and dtype {keep.dtype}; give bool, shape ({layout.num_samples},)"
            )
        bits = np.packbits(keep)
        return cls.from_keep_bits(layout, bits, epoch=epoch, keep_ratio=keep_ratio, method=method, run=run)

    @classmethod
    def from_keep_bits(
        cls,
        layout: DatasetLayout,
        bits: npt.NDArray[np.uint8],
        *,
        epoch: int,
        keep_ratio: float,
        method: str,
        run: str,
    ) -> "SkipList":
        """Make a skip-list from a mask of one bit per sample, unpacked for a shard at a time.

        Args:
            layout: The dataset.
            bits: `numpy.packbits` of a mask over global ids, 1 where kept: uint8, shape (⌈num_samples / 8⌉,).
            epoch: See the class.
            keep_ratio: See the class.
            method: See the class.
            run: See the class.

        Raises:
            SkipListError: The bits have another shape or dtype.
        """
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
        return cls(layout=layout, pruned=tuple(pruned), epoch=epoch, keep_ratio=keep_ratio, method=method, run=run)

    @property
    def num_samples(self) -> int:
        """Samples of the dataset."""
        return self.layout.num_samples

    @cached_property
    def num_pruned(self) -> int:
        """Samples that the epoch leaves out."""
        return sum(map(len, self.pruned))

    @property
    def num_kept(self) -> int:
        """Samples that the epoch reads."""
        return self.num_samples - self.num_pruned

    @property
    def kept_per_shard(self) -> npt.NDArray[np.int64]:
        """Kept samples of each shard: int64, shape (num_shards,)."""
        pairs = zip(self.layout.shards, self.pruned, strict=True)
        return np.array([shard.samples - len(bitmap) for shard, bitmap in pairs], dtype=np.int64)

    def keep_mask(self) -> npt.NDArray[np.bool_]:
        """True for each kept sample: bool, shape (num_samples,), by global id."""
        keep = np.ones(self.num_samples, dtype=np.bool_)
        for offset, bitmap in zip(self.layout.shard_offsets, self.pruned, strict=True):
            keep[offset:][positions_of(bitmap)] = False
        return keep

    def pruned_ids(self) -> npt.NDArray[np.int64]:
        """Global ids of the pruned samples, ascending: int64, shape (num_pruned,)."""
        ids = np.empty(self.num_pruned, dtype=np.int64)
        start = 0
        for offset, bitmap in zip(self.layout.shard_offsets, self.pruned, strict=True):
            np.add(positions_of(bitmap), offset, out=ids[start : start + len(bitmap)])
            start += len(bitmap)
        return ids

    def kept_ids(self) -> npt.NDArray[np.int64]:
        """Global ids of the kept samples, ascending: int64, shape (num_kept,)."""
        return np.flatnonzero(self.keep_mask())

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of what the list selects: the same for any ``run`` and any order of the streams.

        Positions enter as ascending little-endian uint32, not as serialized bitmaps, whose bytes depend on
        the containers that a Roaring library chooses.
        """
        header = [FORMAT_VERSION, self.layout.fingerprint, self.epoch, self.keep_ratio.hex(), self.method]
        sha = hashlib.sha256(json.dumps(header).encode())
        for key, (shards, bitmaps) in sorted(self._rows().items()):
            for shard, bitmap in zip(shards, bitmaps, strict=True):
                row = [key, shard.name, shard.size, shard.samples, len(bitmap)]
                sha.update(json.dumps(row).encode())
                sha.update(positions_of(bitmap).astype("<u4", copy=False).tobytes())
        return sha.hexdigest()

    def aligned_to(self, layout: DatasetLayout) -> "SkipList":
        """Return the same list with its rows in the stream order of ``layout``.

        Identical streams are told apart by their order alone: the first stays the first.

        Raises:
            SkipListError: ``layout`` is another dataset: a shard is missing, unknown, or of another sample
                count or size.
        """
        if layout == self.layout:
            return self
        if layout.fingerprint != self.layout.fingerprint:
            raise SkipListError(
                f"the skip-list is for dataset {self.layout.fingerprint}, this one is {layout.fingerprint}: "
                f"{first_difference(self.layout, layout)}; use the skip-list of this dataset, or the dataset "
                "that the list was made for"
            )
        rows = self._rows()
        pruned = tuple(bitmap for key in layout.stream_keys for bitmap in rows[key][1])
        return SkipList(
            layout=layout,
            pruned=pruned,
            epoch=self.epoch,
            keep_ratio=self.keep_ratio,
            method=self.method,
            run=self.run,
        )

    def _rows(self) -> dict[str, tuple[tuple[ShardLayout, ...], tuple[AbstractBitMap, ...]]]:
        """Shards and bitmaps of each stream, by stream key."""
        ends = accumulate(len(stream.shards) for stream in self.layout.streams)
        return {
            key: (stream.shards, self.pruned[end - len(stream.shards) : end])
            for key, stream, end in zip(self.layout.stream_keys, self.layout.streams, ends, strict=True)
        }
