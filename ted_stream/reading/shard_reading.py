"""A StreamingDataset that fetches the samples which a node needs, and reads local shards fast."""

import copy
import logging
import os
import shutil
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from streaming.base.constant import TICK
from streaming.base.dataset import StreamingDataset, _Iterator, _IterState, _ShardState
from streaming.base.distributed import maybe_init_dist
from streaming.base.shared import SharedArray, SharedMemory
from streaming.base.util import bytes_to_int

from ted_stream.reading.descriptors import naming_the_limit, probe_descriptors
from ted_stream.reading.fetching import Fetcher, has_cache, serves_ranges
from ted_stream.reading.forks import FolderOwner, ProcessLock, renew_after_fork, renewed_downloader
from ted_stream.reading.heads import head_of
from ted_stream.reading.needed import NeededSamples
from ted_stream.reading.node_cache import NodeCache
from ted_stream.reading.node_jobs import Use, node_folder, only_mapped
from ted_stream.reading.read_ahead import ReadAhead
from ted_stream.reading.shard_files import ShardFiles
from ted_stream.reading.shard_preparing import ShardPreparer
from ted_stream.reading.tar_shards import set_decoders
from ted_stream.stores.downloads import naming_credentials

__all__ = ["ShardReading"]

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds

# What streaming makes when it is first used (the lock: at every use), and cannot be used by another process; and the
# list of local folders, which streaming empties where a dataset ends: a copy in a worker ends before the dataset does.
_OF_A_PROCESS = ("_cache_filelock", "_event", "_executor", "_iterator", "_locals_shm")


class ShardReading(StreamingDataset):
    """Fetches of every shard what this node needs in this epoch, once for all its ranks and workers.

    A shard of which nothing is needed is never asked for. One of which a part is needed comes as ranges where that
    costs less than all of it, into a sparse local file that later epochs add to; this needs uncompressed MDS or tar
    shards, and a remote on S3-compatible storage or a file system. Everything else comes whole.

    Samples that are local are read through open files, at most 256 per process whatever the number of datasets;
    nothing is done per sample but the read and the decoding.

    With ``validate_hash``, whole shards are hashed as they come; those that have no elsewhere, once on a node, before
    the first of their samples is read.

    A request that fails in a way that may pass is made up to 5 times for each of ``download_retry`` attempts.

    Args:
        request_latency: what a request costs, as the bytes that the link could have transferred while it waits for
            its first byte: latency × bandwidth ÷ requests in flight (10 per process). A number, or text as ``"64kb"``.
            A very large one fetches whole shards alone.
        min_gap: unwanted bytes between two wanted samples that are left out if they are at least so many.
        decoders: what decodes the members of tar shards, as webdataset's ``decode`` takes it: names of image formats,
            and functions of a member's extension and bytes that return ``None`` for what they leave to others.
    """

    def __init__(
        self,
        *args: Any,
        request_latency: int | str = "64kb",
        min_gap: int | str = "64kb",
        decoders: Sequence[str | Callable[[str, bytes], Any]] = ("pil",),
        **kwargs: Any,
    ) -> None:
        self.request_latency = _num_bytes("request_latency", request_latency)
        self.min_gap = _num_bytes("min_gap", min_gap)
        with naming_the_limit():
            probe_descriptors()
            self._set_up(*args, decoders=decoders, **kwargs)

    def _set_up(self, *args: Any, decoders: Sequence[str | Callable[[str, bytes], Any]], **kwargs: Any) -> None:
        destroys = maybe_init_dist()  # once, for streaming's barrier and for ours
        try:
            with naming_credentials():
                super().__init__(*args, **kwargs)
            set_decoders(self.shards, decoders)
            self._set_up_reading()
            if self._unique_rank_world.is_local_leader:
                shutil.rmtree(self._node_folder, ignore_errors=True)
                self._folder_owner = FolderOwner(self._node_folder)
                self._cache.set_up(self)
            if dist.is_initialized():
                dist.barrier()
        finally:
            if destroys:
                dist.destroy_process_group()

    def _set_up_reading(self) -> None:
        for stream in self.streams:
            if not has_cache(stream):
                stream.safe_keep_zip = True  # what has no elsewhere is not replaced by what it decompresses to
            stream._downloader.clean_up()  # its connection, which fetched the index, must not be shared with workers
        self.spanner = _Spanner(self.sample_offset_per_shard.tolist(), self.num_samples)
        # Streaming makes the barrier's lock when an iteration begins, and keeps it across forks.
        barrier = self._shared_barrier
        barrier.lock = ProcessLock(barrier.filelock_path)  # pyright: ignore[reportAttributeAccessIssue]
        # What every process of the node must know, those included that live on between epochs. Like streaming's own
        # lock files, the name is this dataset's on this node.
        self._node_folder = node_folder(self._filelock_root, self._shm_prefix_int)
        self._folder_owner: FolderOwner | None = None
        by_ranges = [shard.compression is None and head_of(shard) is not None for shard in self.shards]
        serving = np.array([serves_ranges(stream) for stream in self.streams], np.bool_)
        by_ranges = np.array(by_ranges, np.bool_) & serving[self.stream_per_shard]
        self._needed = NeededSamples(self._node_folder / "needed.bits", by_ranges, self.samples_per_shard)
        self._cache = NodeCache(self)
        self._files = ShardFiles(self.shards, partial(_may_be_read, self._cache.evictable, self._shard_states))
        self._use = Use(self._shm_prefix_int, [*self._shared_memory(), self._locals_shm])
        only_mapped(self._locals_shm)
        self._fetcher = Fetcher()
        self._ahead = ReadAhead()
        renew_after_fork(self)

    def _shared_memory(self) -> list[SharedMemory]:
        """All that the node's processes share of this dataset, mapped here, each with one descriptor."""
        barrier, cache = self._shared_barrier._arr, self._cache
        arrays = [barrier, self._next_epoch.arr, self._cache_usage.arr, self._shard_states, self._shard_access_times]
        memories = [array.shm for array in (*arrays, cache.disk_usage, cache.preparers)]
        for memory in memories:
            only_mapped(memory)
        return memories

    # Other processes. processes.md beside this file lists all that a dataset holds of the process that it is in.

    def _renew(self) -> None:
        """Leave the parent's threads, open files and connections behind: called in a forked process."""
        self._fetcher = Fetcher()
        self._ahead = ReadAhead()
        self._needed.forget()
        for stream in self.streams:
            stream._downloader = renewed_downloader(stream)
        iterator = self.__dict__.get("_iterator")
        if iterator is not None:
            # Its threads are gone, so nobody must wait for them; one of them may have held its lock.
            iterator._lock, iterator._state = Lock(), _IterState.EXITED
        for name in _OF_A_PROCESS:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in _OF_A_PROCESS}
        state["streams"] = []
        for stream in self.streams:
            stream_state = copy.copy(stream)
            stream_state._downloader = renewed_downloader(stream)
            state["streams"].append(stream_state)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shared_memory()
        renew_after_fork(self)

    # What follows is called by streaming, which has no other place for it: each hands on to who does the work.

    def _evict_shard(self, shard_id: int) -> None:
        self._cache.evict(shard_id)

    def _evict_coldest_shard(self) -> None:
        self._cache.evict_coldest(self._limit)

    @property
    def _limit(self) -> int | None:
        return None if self.cache_limit is None else int(self.cache_limit)  # streaming has made a number of it

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Make local what this node needs of a shard in this epoch; outside of an epoch, all of it.

        Any number of processes and threads may call it; one of them does the work.

        Args:
            shard_id: the shard.
            blocking: wait until it is there, also where another process is working on it.

        Raises:
            OSError: if the store fails for good, or the disk is full.
            ValueError: if what came is not what the index says, or ``cache_limit`` is too small.
        """
        positions, missed = self._needed.of(shard_id), None
        if blocking and self._files.missed is not None and self._files.missed[0] == shard_id:
            missed = self._files.missed[1]
            if positions is not None and missed not in positions:
                positions = None  # read at random, beside the epoch
        self._prepare(shard_id, positions, recheck=missed is not None, blocking=blocking)

    def prepare_samples(self, sample_ids: Sequence[int]) -> None:
        """Make a few samples local, where ``dataset[index]`` alone would make all of their shards so.

        Args:
            sample_ids: of any number of samples.

        Raises:
            IndexError: if there is no such sample.
            OSError, ValueError: as :meth:`prepare_shard`.
        """
        positions: defaultdict[int, set[int]] = defaultdict(set)
        for shard_id, position in (self.spanner[sample_id] for sample_id in sample_ids):
            positions[shard_id].add(position)
        for shard_id, wanted in positions.items():
            single = np.array(sorted(wanted)) if self._needed.by_ranges[shard_id] else None
            self._prepare(shard_id, single, recheck=True, is_epochs=False)

    def _prepare(
        self,
        shard_id: int,
        positions: NDArray[np.int64] | None,
        *,
        recheck: bool,
        is_epochs: bool = True,
        blocking: bool = True,
    ) -> None:
        preparer = ShardPreparer(
            shard_id=int(shard_id),
            shard=self.shards[shard_id],
            stream=self.streams[self.stream_per_shard[shard_id]],
            cache=self._cache,
            fetcher=self._fetcher,
            cache_limit=self._limit,
            request_latency=self.request_latency,
            min_gap=self.min_gap,
        )
        tells_at = time.monotonic() + _PATIENCE
        while not preparer.prepare(positions, recheck=recheck, is_epochs=is_epochs):
            if not blocking:
                return
            self._ahead.check()
            if time.monotonic() > tells_at:
                tells_at = float("inf")  # once
                self._tell_waiting(shard_id)
            time.sleep(TICK)

    def _tell_waiting(self, shard_id: int) -> None:
        stream = self.streams[self.stream_per_shard[shard_id]]
        log.warning(
            "Process %d has waited %g s for shard %d, of %s, on which process %d is at work. A slow store or disk may "
            "take so long. A DataLoader worker that was forked while another thread of its parent was within OpenSSL "
            "(by boto3 or requests, say) never ends: it waits there for a lock that nobody will let go of. If nothing "
            'goes on, kill this run, pass its DataLoaders multiprocessing_context="forkserver", and resume it.',
            os.getpid(),
            _PATIENCE,
            shard_id,
            stream.remote or stream.local,
            self._cache.preparers[shard_id],
        )

    def _share_work(self, sample_ids: NDArray[np.int64]) -> tuple[SharedMemory, SharedMemory | None]:
        """Called where an epoch is planned, before the node's other processes go on: tell them what is needed."""
        self._ahead.begin()
        if self._needed.matter:
            self._needed.publish(sample_ids[self._parallel_worker_world.node])
            self._cache.expect_others()
            self._needed.look_up()
        return super()._share_work(sample_ids)

    def _attach_work(self) -> tuple[NDArray[np.int64], SharedMemory, SharedMemory | None]:
        """Called in the node's other processes, before any of them goes on."""
        self._ahead.begin()
        if self._needed.matter:
            self._needed.look_up()
        return super()._attach_work()

    def _prepare_thread(self, it: _Iterator) -> None:
        self._ahead.prepare(self, it)

    def _ready_thread(self, it: _Iterator) -> None:
        """Has nothing to do: a sample that is not there yet is waited for where it is read."""
        it.ready_index = it.total
        it.on_exit()

    def _each_sample_id(self, it: _Iterator) -> Iterator[int]:
        return self._ahead.sample_ids(self, it, self._restore_removed)

    def _restore_removed(self) -> None:
        """Make local again, after an epoch, what was removed by hand and read on through the open file."""
        for shard_id in self._files.close_removed():
            if self._shard_states[shard_id] == _ShardState.LOCAL and self._cache.evictable[shard_id]:
                self.prepare_shard(shard_id)


def _may_be_read(evictable: NDArray[np.bool_], states: SharedArray, shard_id: int) -> bool:
    """Whether a shard's local files, if there are any, may be read as they are: copies, and what has been looked at."""
    return bool(evictable[shard_id]) or int(states[shard_id]) == _ShardState.LOCAL


class _Spanner:
    """Finds the shard of a sample, as streaming's Spanner does but without a span for every 1024 samples."""

    def __init__(self, first_ids: list[int], num_samples: int) -> None:
        self._first_ids, self._num_samples = first_ids, num_samples

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._num_samples:
            raise IndexError(f"Invalid sample index `{index}`: 0 <= {index} < {self._num_samples}")
        shard_id = bisect_right(self._first_ids, index) - 1
        return shard_id, int(index) - self._first_ids[shard_id]


def _num_bytes(name: str, value: int | str) -> int:
    number = bytes_to_int(value)
    if number < 0:
        raise ValueError(f"{name} is {value}, expected 0 or more bytes.")
    return number
