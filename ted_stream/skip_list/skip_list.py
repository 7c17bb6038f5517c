"""The skip-list as a value: which samples of which dataset are pruned in one epoch."""

import hashlib
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import AbstractBitMap, FrozenBitMap

from ted_stream.showing import html_table, kept_of
from ted_stream.skip_list.bitmaps import bitmaps_of_bits, bitmaps_of_ids, check_bitmaps, positions_of
from ted_stream.skip_list.difference import first_difference, match_streams, warn_if_unchecked
from ted_stream.skip_list.errors import SkipListError
from ted_stream.skip_list.layout import DatasetLayout, ShardLayout
from ted_stream.skip_list.text import check_text
from ted_stream.skip_list.version import version_of
from ted_stream.skip_list.weights import Weights, checked, joined

_BLOCK = 1 << 16  # samples whose ids are made at once


def _as_text(self: "SkipList") -> str:
    facts = {name: getattr(self, name) for name in ("epoch", "method", "run", "keep_ratio")}
    facts |= {"kept": self.num_kept, "samples": self.num_samples}
    return f"SkipList({', '.join(f'{name}={value!r}' for name, value in facts.items())})"


def _as_html(self: "SkipList") -> str:
    weights = self.weights
    facts = {
        "method": self.method,
        "run": self.run,
        "kept": kept_of(self.num_kept, self.num_samples),
        "asked for": f"{self.keep_ratio:.1%}",
        "shards": self.layout.num_shards,
        "weights": None if weights is None or not len(weights) else f"{weights.min():.4g} to {weights.max():.4g}",
    }
    return html_table(f"Skip-list of epoch {self.epoch}", facts)


@dataclass(frozen=True, kw_only=True, eq=False)
class SkipList:
    """The samples that one epoch leaves out, and what those that it keeps weigh. Immutable, hashable, equal by value.

    Attributes:
        layout: The dataset that the list belongs to.
        pruned: A bitmap of pruned positions per shard, in layout order; kept as frozen copies.
        epoch: The epoch (0-based) in which this list is active.
        keep_ratio: The fraction of samples that the method was asked to keep, in [0, 1].
        method: Name of the pruning method.
        run: Name of the training run that made the list; no part of the digest.
        weights: The weight of each kept sample in the loss, by ascending global id: finite and above 0, float32,
            shape (num_kept,), kept as a read-only copy. None: all weigh alike.

    Raises:
        SkipListError: A value is out of its range, or the bitmaps or weights do not fit the layout.
    """

    layout: DatasetLayout = field(repr=False)
    pruned: tuple[AbstractBitMap, ...] = field(repr=False)
    epoch: int
    keep_ratio: float
    method: str
    run: str
    weights: Weights | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        frozen = tuple(b if isinstance(b, FrozenBitMap) else FrozenBitMap(b) for b in self.pruned)
        object.__setattr__(self, "pruned", frozen)
        object.__setattr__(self, "epoch", operator.index(self.epoch))
        object.__setattr__(self, "keep_ratio", float(self.keep_ratio) + 0.0)  # never -0.0: equal ratios, equal digests
        if self.epoch < 0:
            raise SkipListError(f"epoch is {self.epoch}; epochs count from 0")
        if not 0 <= self.keep_ratio <= 1:
            raise SkipListError(f"keep_ratio is {self.keep_ratio}, outside [0, 1]")
        check_text("method", self.method)
        check_text("run", self.run)
        check_bitmaps(self.layout, frozen)
        if self.weights is not None:
            object.__setattr__(self, "weights", checked(self.weights, self.layout, self.kept_per_shard))

    __repr__ = _as_text
    _repr_html_ = _as_html

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.weights is not None:
            self.weights.flags.writeable = False  # which pickling and copying forget

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SkipList):
            return NotImplemented
        names = ("layout", "pruned", "epoch", "keep_ratio", "method", "run")
        if any(getattr(self, name) != getattr(other, name) for name in names):
            return False
        if self.weights is None or other.weights is None:
            return self.weights is other.weights
        return np.array_equal(self.weights, other.weights)

    def __hash__(self) -> int:
        return hash((self.digest, self.run))

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
        weights: Weights | None = None,
    ) -> "SkipList":
        """Make a skip-list from the pruned samples' global ids: unique integers, shape (n,), in any order.

        The other arguments are those of the class.

        Raises:
            SkipListError: An id is out of range or occurs twice, or the array is not of integers in one axis.
        """
        pruned = bitmaps_of_ids(layout, pruned_ids)
        return cls(
            layout=layout, pruned=pruned, epoch=epoch, keep_ratio=keep_ratio, method=method, run=run, weights=weights
        )

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
        weights: Weights | None = None,
    ) -> "SkipList":
        """Make a skip-list from a mask over global ids: bool, shape (layout.num_samples,), True where kept.

        The other arguments are those of the class.

        Raises:
            SkipListError: The mask has another shape or dtype.
        """
        keep = np.asarray(keep)
        if keep.shape != (layout.num_samples,) or keep.dtype != np.bool_:
            raise SkipListError(
                f"keep has shape {keep.shape} and dtype {keep.dtype}; give bool, shape ({layout.num_samples},)"
            )
        return cls.from_keep_bits(
            layout, np.packbits(keep), epoch=epoch, keep_ratio=keep_ratio, method=method, run=run, weights=weights
        )

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
        weights: Weights | None = None,
    ) -> "SkipList":
        """Make a skip-list from a mask of one bit per sample, unpacked for a shard at a time.

        ``bits`` is `numpy.packbits` of a mask over global ids, 1 where kept: uint8, shape (⌈num_samples / 8⌉,). The
        other arguments are those of the class.

        Raises:
            SkipListError: The bits have another shape or dtype.
        """
        pruned = bitmaps_of_bits(layout, bits)
        return cls(
            layout=layout, pruned=pruned, epoch=epoch, keep_ratio=keep_ratio, method=method, run=run, weights=weights
        )

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
        ids, start = np.empty(self.num_pruned, dtype=np.int64), 0
        for offset, bitmap in zip(self.layout.shard_offsets, self.pruned, strict=True):
            np.add(positions_of(bitmap), offset, out=ids[start : start + len(bitmap)])
            start += len(bitmap)
        return ids

    def kept_ids(self, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
        """Global ids of the kept samples, ascending: integers of ``dtype``, shape (num_kept,)."""
        keep, ids, start = self.keep_mask(), np.empty(self.num_kept, dtype), 0
        for first in range(0, len(keep), _BLOCK):  # 8 bytes for every kept sample at once would be the most of it
            found = np.flatnonzero(keep[first : first + _BLOCK])
            ids[start : start + len(found)] = found + first
            start += len(found)
        return ids

    def weights_by_id(self) -> Weights:
        """Weights by global id, 1 where all weigh alike: float32, shape (num_samples,), NaN for pruned samples."""
        weights = np.full(self.num_samples, np.nan, dtype=np.float32)
        weights[self.keep_mask()] = 1 if self.weights is None else self.weights
        return weights

    def without_weights(self) -> "SkipList":
        """The same list, its kept samples all weighing alike."""
        return self if self.weights is None else replace(self, weights=None)

    @property
    def format_version(self) -> int:
        """The format version of the list's file, by what it holds: weights, and the content of shards."""
        return version_of(weighted=self.weights is not None, with_content=self.layout.knows_content)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of what the list selects and weighs: the same for any ``run`` and any order of the streams.

        Positions enter as ascending little-endian uint32, not as serialized bitmaps, whose bytes depend on
        the containers that a Roaring library chooses; weights as little-endian float32.
        """
        header = [self.format_version, self.layout.fingerprint, self.epoch, self.keep_ratio.hex(), self.method]
        sha = hashlib.sha256(json.dumps(header).encode())
        for key, rows in sorted(self._rows().items()):
            for shard, bitmap, weights in rows:
                sha.update(json.dumps([key, shard.name, shard.size, shard.samples, len(bitmap)]).encode())
                sha.update(positions_of(bitmap).astype("<u4", copy=False).tobytes())
                if weights is not None:
                    sha.update(weights.astype("<f4", copy=False).tobytes())
        return sha.hexdigest()

    def aligned_to(self, layout: DatasetLayout) -> "SkipList":
        """Return the same list with ``layout``, and its rows in the stream order of that.

        Identical streams are told apart by their order alone. Where content cannot be compared, a warning says so.

        Raises:
            SkipListError: ``layout`` is another dataset: a shard is missing, unknown, or of another sample
                count, size or content.
        """
        if layout == self.layout:
            return self
        order = match_streams(self.layout, layout)
        if order is None:
            raise SkipListError(
                f"the skip-list is for dataset {self.layout.fingerprint}, this one is {layout.fingerprint}: "
                f"{first_difference(self.layout, layout)}; use the skip-list of this dataset, or the dataset "
                "that the list was made for"
            )
        rows = list(self._rows().values())
        found = [row for at in order for row in rows[at]]
        warn_if_unchecked(f"the skip-list of run {self.run!r}, epoch {self.epoch},", self.layout, layout, order)
        weights = None if self.weights is None else joined([w for _, _, w in found if w is not None])
        return replace(self, layout=layout, pruned=tuple(bitmap for _, bitmap, _ in found), weights=weights)

    def weights_per_shard(self) -> Sequence[Weights | None]:
        """The weights of each shard's kept samples, in layout order; None for each where there are none."""
        if self.weights is None:
            return [None] * self.layout.num_shards
        return np.split(self.weights, np.cumsum(self.kept_per_shard)[:-1])

    def _rows(self) -> dict[str, list[tuple[ShardLayout, AbstractBitMap, Weights | None]]]:
        """Shard, bitmap and weights of each shard of each stream, by stream key."""
        rows = zip(self.layout.shards, self.pruned, self.weights_per_shard(), strict=True)
        streams = zip(self.layout.stream_keys, self.layout.streams, strict=True)
        return {key: list(islice(rows, len(stream.shards))) for key, stream in streams}
