"""What a node holds of a dataset's shards: their states, the bytes that they take up, and who is at work on them."""

import os
import time
from enum import Enum

import numpy as np
from streaming.base.constant import SHM_TO_CLEAN, TICK
from streaming.base.dataset import NEVER, StreamingDataset, _ShardState
from streaming.base.shared import SharedArray, _get_path

from ted_stream.reading.fetching import has_cache
from ted_stream.reading.forks import ProcessLock
from ted_stream.reading.heads import head_of
from ted_stream.reading.node_jobs import is_alive
from ted_stream.reading.shard_copies import (
    bytes_on_disk,
    copies_of,
    discard,
    discard_sparse,
    is_as_indexed,
    lacks_raw,
    remove_cut_off,
    remove_unfinished,
)
from ted_stream.reading.shard_files import open_sparse

__all__ = ["PARTIAL", "READY", "Claim", "NodeCache"]

# States of a shard beside streaming's, all of which mean that it is wholly local, wholly remote, or being worked on.
PARTIAL = 4  # some of its samples are local
READY = 5  # all of its samples that this node needs in this epoch are local

# What node_jobs.py removes of a dataset that nobody uses any more.
SHM_TO_CLEAN.extend(("ted_disk_usage", "ted_preparer"))


class Claim(Enum):
    """What comes of asking for the work on a shard."""

    NEEDLESS = "what is asked for is there"
    GRANTED = "the work is the asking thread's, until it settles"
    TAKEN = "another thread or process is at work"


class NodeCache:
    """The shards that are local to a node, as all its processes know them.

    Everything here is shared memory, or a lock for every process: it may be forked, pickled and copied as it is. Shards
    are written and removed by who holds the lock, or has claimed the work on them.

    Args:
        dataset: one that streaming has set up. Its shards, and what it shares, are used from here on.

    Attributes:
        evictable: (shards,) bool. What has no elsewhere is nobody's cached copy: it is neither counted nor removed.
        disk_usage: (shards,) int64: bytes that a shard takes up.
        preparers: (shards,) int64: id of the process that is, or was last, at work on a shard.
    """

    def __init__(self, dataset: StreamingDataset) -> None:
        # Not the dataset itself, which would then live, and keep its folders in use, until garbage is collected.
        self._shards = dataset.shards
        self._states = dataset._shard_states
        self._access_times = dataset._shard_access_times
        self._usage = dataset._cache_usage
        self._lock = ProcessLock(dataset._cache_filelock_path)
        prefix = dataset._shm_prefix_int
        self.disk_usage = SharedArray(dataset.num_shards, np.int64, _get_path(prefix, "ted_disk_usage"))
        self.preparers = SharedArray(dataset.num_shards, np.int64, _get_path(prefix, "ted_preparer"))
        caches = np.array([has_cache(stream) for stream in dataset.streams], np.bool_)
        self.evictable = caches[dataset.stream_per_shard]

    def set_up(self, dataset: StreamingDataset) -> None:
        """Repair what an earlier run left, and learn what is there: in one process, before the node's others go on."""
        validates = np.array([bool(stream.validate_hash) for stream in dataset.streams], np.bool_)
        unseen = ~self.evictable & validates[dataset.stream_per_shard]  # copies were validated as they came
        first_shards = dataset.shard_offset_per_stream
        for stream, first, count in zip(dataset.streams, first_shards, dataset.shards_per_stream, strict=True):
            if has_cache(stream):
                remove_unfinished(stream, self._shards[first : first + count])
        for shard_id, shard in enumerate(self._shards):
            if self.evictable[shard_id]:
                self._repair(shard_id)
            if self._states[shard_id] == _ShardState.LOCAL and (unseen[shard_id] or not is_as_indexed(shard)):
                self._states[shard_id] = PARTIAL  # has yet to be decompressed, validated or refused
            self.disk_usage[shard_id] = self._measured(shard_id)
        index = sum(stream.get_index_size() for stream in dataset.streams)
        self._usage.set(index + int(self.disk_usage.numpy().sum()))

    def _repair(self, shard_id: int) -> None:
        """Bring the cached copy of a shard to a state that can be trusted."""
        shard, head = self._shards[shard_id], head_of(self._shards[shard_id])
        if remove_cut_off(shard):
            self._states[shard_id] = _ShardState.REMOTE
        if self._states[shard_id] == _ShardState.REMOTE:
            if head is not None and open_sparse(head) is not None:
                self._states[shard_id] = PARTIAL
            else:
                discard_sparse(shard)

    # Work on a shard -------------------------------------------------------------------------------------------

    def claim(self, shard_id: int, *, ready_suffices: bool) -> Claim:
        """Ask for the work on a shard, which is for one at a time.

        Args:
            shard_id: the shard.
            ready_suffices: nothing is to be done where all that the node needs in this epoch is there.
        """
        with self._lock:
            state = int(self._states[shard_id])
            is_whole = state == _ShardState.LOCAL and not lacks_raw(self._shards[shard_id])
            if is_whole or (state == READY and ready_suffices):
                self._access_times[shard_id] = time.time_ns()
                return Claim.NEEDLESS
            if state == _ShardState.INVALID:
                raise RuntimeError(f"Invalid shard state: {state}")
            if state == _ShardState.PREPARING and is_alive(int(self.preparers[shard_id])):
                return Claim.TAKEN
            self._states[shard_id] = _ShardState.PREPARING
            self.preparers[shard_id] = os.getpid()
            return Claim.GRANTED

    def settle(self, shard_id: int, state: int | None) -> None:
        """End the work on a claimed shard, and say what state it has come to: ``None`` where it failed."""
        with self._lock:
            usage = self._measured(shard_id)
            if state is None:
                state = PARTIAL if usage else _ShardState.REMOTE
            self._states[shard_id] = state
            self._access_times[shard_id] = time.time_ns()
            self._account(shard_id, usage)

    def expect_others(self) -> None:
        """An epoch begins, which needs other samples than those that are known to be there."""
        with self._lock:
            states = self._states.numpy()
            states[states == READY] = PARTIAL

    # Its limit -------------------------------------------------------------------------------------------------

    def reserve(self, shard_id: int, size: int, *, limit: int | None, timeout: float) -> None:
        """Make room for ``size`` more bytes of a shard that is claimed, before they are fetched.

        Args:
            shard_id: the shard.
            size: in bytes.
            limit: bytes that the cache may take up; ``None`` or 0 for any number.
            timeout: seconds to wait for others to end their work, after which their shards can be evicted.

        Raises:
            ValueError: if there is no room, and nobody else's work will make any.
        """
        if not limit or not self.evictable[shard_id]:
            return
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                try:
                    while limit < int(self._usage.get()) + size:
                        self.evict_coldest(limit)
                    self._account(shard_id, int(self.disk_usage[shard_id]) + size)
                    return
                except ValueError:
                    # Shards that others are fetching can be evicted when they are done.
                    others = int((self._states.numpy() == _ShardState.PREPARING).sum()) > 1
                    if not others or time.monotonic() > deadline:
                        raise
            time.sleep(TICK)

    def evict(self, shard_id: int) -> None:
        """Remove a shard's local files; with the lock held."""
        shard = self._shards[shard_id]
        self._access_times[shard_id] = NEVER  # so that it is not the coldest
        self._states[shard_id] = _ShardState.REMOTE
        if self.evictable[shard_id]:
            for path in copies_of(shard):
                discard(path, cut=head_of(shard) is not None)
        self._account(shard_id, self._measured(shard_id))

    def evict_coldest(self, limit: int | None) -> None:
        """Evict the local shard that was used longest ago; with the lock held.

        Args:
            limit: for the message.

        Raises:
            ValueError: if there is none.
        """
        local = np.flatnonzero(np.isin(self._states.numpy(), (_ShardState.LOCAL, PARTIAL, READY)) & self.evictable)
        if not local.size:
            raise ValueError(
                f"cache_limit is {limit} bytes, {int(self._usage.get())} are in use, and no shard is there to be "
                "evicted: shards that are being fetched need more. Raise cache_limit, or use fewer workers."
            )
        self.evict(int(local[np.argmin(self._access_times.numpy()[local])]))

    def _measured(self, shard_id: int) -> int:
        return bytes_on_disk(self._shards[shard_id]) if self.evictable[shard_id] else 0

    def _account(self, shard_id: int, usage: int) -> None:
        """Set a shard's share of the bytes in use; with the lock held."""
        self._usage.set(int(self._usage.get()) + usage - int(self.disk_usage[shard_id]))
        self.disk_usage[shard_id] = usage
