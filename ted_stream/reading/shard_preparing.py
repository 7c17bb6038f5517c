"""Making a shard local: the samples that are needed by ranges, or all of it, fetched and decompressed."""

import errno
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from streaming.base.dataset import _ShardState
from streaming.base.format.base.reader import Reader
from streaming.base.stream import Stream

from ted_stream.reading.descriptors import naming_the_limit
from ted_stream.reading.fetching import Fetcher
from ted_stream.reading.heads import head_of
from ted_stream.reading.node_cache import PARTIAL, READY, Claim, NodeCache
from ted_stream.reading.ranges import choose_ranges
from ted_stream.reading.shard_copies import PAGE, discard_sparse, with_extents
from ted_stream.reading.shard_files import open_sparse
from ted_stream.reading.sparse import SparseShard

__all__ = ["ShardPreparer"]


@dataclass(frozen=True, kw_only=True)
class ShardPreparer:
    """Prepares one shard, by what a dataset has at hand and its settings as they are now.

    Attributes:
        shard_id: of the shard.
        shard: its reader.
        stream: that it belongs to.
        cache: of the node, which says whose work it is.
        fetcher: the connections of this process.
        cache_limit: bytes that all local shards may take up; ``None`` or 0 for any number.
        request_latency: see :class:`~ted_stream.reading.shard_reading.ShardReading`.
        min_gap: see there.
    """

    shard_id: int
    shard: Reader
    stream: Stream
    cache: NodeCache
    fetcher: Fetcher
    cache_limit: int | None
    request_latency: int
    min_gap: int

    def prepare(self, positions: NDArray[np.int64] | None, *, recheck: bool, is_epochs: bool) -> bool:
        """Make samples local, unless somebody else is at work on the shard.

        Args:
            positions: (n,) int64, ascending, n ≥ 1; ``None`` for all.
            recheck: even where they seem to be there.
            is_epochs: whether they are all that the node needs of the shard in this epoch.

        Returns:
            Whether they are there now; else to be asked again once the other one is done.

        Raises:
            OSError: if the store fails for good, the disk is full, or too many files are open.
            ValueError: if what came is not what the index says, or ``cache_limit`` is too small.
        """
        with naming_the_limit():
            return self._prepare(positions, recheck=recheck, is_epochs=is_epochs)

    def _prepare(self, positions: NDArray[np.int64] | None, *, recheck: bool, is_epochs: bool) -> bool:
        claim = self.cache.claim(self.shard_id, ready_suffices=positions is not None and not recheck)
        if claim is not Claim.GRANTED:
            return claim is Claim.NEEDLESS
        state: int | None = None
        try:
            state = self._fill(positions)
            if state == READY and not is_epochs:
                state = PARTIAL
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    error.errno,
                    f"The disk of the cache is full, in {self.stream.local!r}. Free space there, name a local folder "
                    f"on a larger disk, or pass cache_limit (bytes; now {self.cache_limit}) so that old shards make "
                    "room",
                ) from error
            raise
        finally:
            self.cache.settle(self.shard_id, state)
        return True

    def _fill(self, positions: NDArray[np.int64] | None) -> int:
        """Fetch positions of the shard (``None`` for all) and return its new state."""
        if positions is not None and self._fill_sparsely(positions):
            return READY
        self._reserve(self.shard.get_max_size())
        self.fetcher.fetch_whole(self.stream, self.shard)
        discard_sparse(self.shard)
        return _ShardState.LOCAL

    def _fill_sparsely(self, positions: NDArray[np.int64]) -> bool:
        """Fetch positions by ranges, unless the whole shard costs no more; return whether it did."""
        head = head_of(self.shard)
        assert head is not None, "by ranges"
        size, samples = head.data.bytes, head.samples
        costs = {"size": size, "request_latency": self.request_latency, "min_gap": self.min_gap}
        sparse = open_sparse(head)
        if sparse is None:
            # Before asking where the samples are, see whether it can pay: as if all had the same size.
            estimate = np.linspace(0, size, samples + 1).astype(np.int64)
            if choose_ranges(estimate, positions, **costs) is None:
                return False
            table = self.fetcher.fetch_head(self.stream, head)
            path = head.data_path
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._reserve(len(table) + 4 * samples + 2 * PAGE)
            sparse = SparseShard.create(path, table, size=size, samples=samples, parse=head.parse)
        missing = positions[~sparse.present()[positions]]
        if not len(missing):
            return True
        offsets = np.frombuffer(sparse.offsets, np.int64)
        runs = choose_ranges(offsets, missing, **costs)
        if runs is None:
            return False
        # A run of samples takes up to two blocks more than it fills.
        self._reserve(with_extents(int((offsets[runs[:, 1]] - offsets[runs[:, 0]] + 2 * PAGE).sum())))
        self.fetcher.fetch_samples(self.stream, head, sparse, runs)
        return True

    def _reserve(self, size: int) -> None:
        self.cache.reserve(self.shard_id, size, limit=self.cache_limit, timeout=self.stream.download_timeout)
