"""A StreamingDataset that fetches the samples which a node needs, and reads local shards fast."""

import errno
import os
import re
import shutil
import time
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from filelock import FileLock
from numpy.typing import NDArray
from streaming.base.constant import SHM_TO_CLEAN, TICK
from streaming.base.dataset import NEVER, StreamingDataset, _ShardState
from streaming.base.distributed import maybe_init_dist
from streaming.base.format.base.reader import Reader
from streaming.base.shared import SharedArray, SharedMemory, _get_path
from streaming.base.stream import Stream
from streaming.base.util import bytes_to_int

from ted_stream.reading.fetching import Fetcher, has_cache, serves_ranges
from ted_stream.reading.heads import head_of
from ted_stream.reading.ranges import choose_ranges
from ted_stream.reading.shard_files import ShardFiles, open_sparse, path_of
from ted_stream.reading.sparse import SPARSE_SUFFIXES, SparseShard
from ted_stream.reading.tar_shards import set_decoders
from ted_stream.skip_list.atomic import write_bytes_whole

__all__ = ["ShardReading"]

# States of a shard beside streaming's, all of which mean that it is wholly local, wholly remote, or being worked on.
_PARTIAL = 4  # some of its samples are local
_READY = 5  # all of its samples that this node needs in this epoch are local

# streaming.base.util.clean_stale_shared_memory goes through this list, and a dataset's prefix is free of all of it.
SHM_TO_CLEAN.extend(("ted_disk_usage", "ted_preparer"))

_UNFINISHED = re.compile(r"\.?(.+?)(?:\.present)?\.[0-9a-f]{16}\.tmp")

_PREPARERS = 4  # shards that a process prepares at once
_BLOCK = 1 << 14  # samples whose shards are looked up at once
_PAGE = 4096  # bytes of a file system's block: a run of samples takes up to two more than it fills


class ShardReading(StreamingDataset):
    """Fetches of every shard what this node needs in this epoch, once for all its ranks and workers.

    A shard of which nothing is needed is never asked for. One of which a part is needed comes as ranges where that
    costs less than all of it, into a sparse local file that later epochs add to; this needs uncompressed MDS or tar
    shards, and a remote on S3-compatible storage or a file system. Everything else comes whole.

    Samples that are local are read through open files; nothing is done per sample but the read and the decoding.

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
        destroys = maybe_init_dist()  # once, for streaming's barrier and for ours
        try:
            super().__init__(*args, **kwargs)
            set_decoders(self.shards, decoders)
            self._set_up_reading()
            if self._unique_rank_world.is_local_leader:
                self._set_up_node()
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
        first_ids = self.sample_offset_per_shard.tolist()
        self.spanner = _Spanner(first_ids, self.num_samples)
        self._files = ShardFiles(self.shards)
        self._needed: NDArray[np.uint8] | None = None  # a bit per sample of the dataset, while an epoch is planned
        self._process: _Process | None = None
        self._failure: BaseException | None = None
        by_ranges = [shard.compression is None and head_of(shard) is not None for shard in self.shards]
        serving = np.array([serves_ranges(stream) for stream in self.streams], np.bool_)
        # What has no elsewhere is nobody's cached copy: it is neither counted nor ever removed.
        caches = np.array([has_cache(stream) for stream in self.streams], np.bool_)
        self._evictable = caches[self.stream_per_shard]
        self._by_ranges = np.array(by_ranges, np.bool_) & serving[self.stream_per_shard]
        self._disk_usage = SharedArray(self.num_shards, np.int64, _get_path(self._shm_prefix_int, "ted_disk_usage"))
        self._preparer = SharedArray(self.num_shards, np.int64, _get_path(self._shm_prefix_int, "ted_preparer"))
        # What every process of the node must know, those included that live on between epochs. Like streaming's own
        # lock files, the name is this dataset's on this node.
        self._node_folder = Path(self._filelock_root) / f"{self._shm_prefix_int:06}_ted_stream"

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned: they look up what is needed, and a lock cannot be taken along.
        state = self.__dict__ | {"_needed": None}
        state.pop("_cache_filelock", None)
        return state

    # The node's cache ------------------------------------------------------------------------------------------

    def _set_up_node(self) -> None:
        """Repair what an earlier run left, and learn what is there."""
        for stream_id, stream in enumerate(self.streams):
            if has_cache(stream):
                first = self.shard_offset_per_stream[stream_id]
                self._remove_unfinished(stream, self.shards[first : first + self.shards_per_stream[stream_id]])
        _remove(self._node_folder, os.getpid())
        weakref.finalize(self, _remove, self._node_folder, os.getpid())
        for shard_id in range(self.num_shards):
            if self._evictable[shard_id]:
                self._repair(shard_id)
            if self._shard_states[shard_id] == _ShardState.LOCAL and self._lacks_raw(shard_id):
                self._shard_states[shard_id] = _PARTIAL  # has yet to be decompressed
            self._disk_usage[shard_id] = self._measured_usage(shard_id)
        index = sum(stream.get_index_size() for stream in self.streams)
        self.cache_usage = index + int(self._disk_usage.numpy().sum())

    def _remove_unfinished(self, stream: Stream, shards: Sequence[Reader]) -> None:
        """Remove what a run was writing when it was killed: files of these shards under temporary names."""
        names = {os.path.basename(file.basename) for shard in shards for file, _ in shard.file_pairs}
        for path in Path(stream.local, stream.split).rglob("*.tmp"):
            match = _UNFINISHED.fullmatch(path.name)
            if match is not None and match[1] in names:
                path.unlink(missing_ok=True)

    def _repair(self, shard_id: int) -> None:
        """Bring the cached copy of a shard to a state that can be trusted."""
        shard, head = self.shards[shard_id], head_of(self.shards[shard_id])
        copies = list(self._copies(shard_id))
        for path in copies:
            Path(path + ".evicted").unlink(missing_ok=True)
        for file, _ in shard.file_pairs:
            path = path_of(shard, file)
            if path in copies and os.path.isfile(path) and os.path.getsize(path) != file.bytes:
                _discard(path)  # a download that was cut off
                self._shard_states[shard_id] = _ShardState.REMOTE
        if self._shard_states[shard_id] == _ShardState.REMOTE and head is not None:
            if open_sparse(head) is not None:
                self._shard_states[shard_id] = _PARTIAL
            else:
                for suffix in SPARSE_SUFFIXES:
                    _discard(path_of(shard, head.data) + suffix)

    def _copies(self, shard_id: int) -> Iterator[str]:
        """Where the files of a shard are that can be fetched again."""
        shard, head = self.shards[shard_id], head_of(self.shards[shard_id])
        if not self._evictable[shard_id]:
            return
        for raw, zipped in shard.file_pairs:
            # Offsets beside a tar are small, and may have been written here for a bucket that is not ours.
            if head is None or raw is head.data:
                yield path_of(shard, raw)
            if zipped is not None:
                yield path_of(shard, zipped)
        if head is not None:
            for suffix in SPARSE_SUFFIXES:
                yield path_of(shard, head.data) + suffix

    def _measured_usage(self, shard_id: int) -> int:
        """Bytes of a shard's files, as streaming counts them; holes are not counted."""
        usage, shard = 0, self.shards[shard_id]
        if not self._evictable[shard_id]:
            return 0
        for path in {*self._copies(shard_id), *(path_of(shard, raw) for raw, _ in shard.file_pairs)}:
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            usage += min(status.st_size, 512 * status.st_blocks)
        return usage

    def _cache_lock(self) -> FileLock:
        # Made when first used, since it cannot be pickled.
        if not hasattr(self, "_cache_filelock"):
            self._cache_filelock = FileLock(self._cache_filelock_path)
        return self._cache_filelock

    def _account(self, shard_id: int, usage: int) -> None:
        """Set a shard's share of the cache usage; with the cache lock held."""
        self.cache_usage += usage - int(self._disk_usage[shard_id])
        self._disk_usage[shard_id] = usage

    def _evict_shard(self, shard_id: int) -> None:
        """Remove a shard's local files; with the cache lock held."""
        self._shard_access_times[shard_id] = NEVER  # so that it is not the coldest
        self._shard_states[shard_id] = _ShardState.REMOTE
        for path in self._copies(shard_id):
            _discard(path, cut=head_of(self.shards[shard_id]) is not None)
        self._account(shard_id, self._measured_usage(shard_id))

    def _evict_coldest_shard(self) -> None:
        """Evict the local shard that was used longest ago; with the cache lock held.

        Raises:
            ValueError: if there is none.
        """
        states = self._shard_states.numpy()
        local = np.flatnonzero(np.isin(states, (_ShardState.LOCAL, _PARTIAL, _READY)) & self._evictable)
        if not local.size:
            raise ValueError(
                f"cache_limit is {self.cache_limit} bytes, {self.cache_usage} are in use, and no shard is there to be "
                "evicted: shards that are being fetched need more. Raise cache_limit, or use fewer workers."
            )
        self._evict_shard(int(local[np.argmin(self._shard_access_times.numpy()[local])]))

    def _reserve(self, shard_id: int, size: int) -> None:
        """Make room for ``size`` more bytes of a shard that is being prepared, before they are fetched.

        Raises:
            ValueError: if there is no room, and nobody else's work will make any.
        """
        if not self.cache_limit or not self._evictable[shard_id]:
            return
        deadline = time.monotonic() + self.streams[self.stream_per_shard[shard_id]].download_timeout
        while True:
            with self._cache_lock():
                try:
                    while int(self.cache_limit) < self.cache_usage + size:
                        self._evict_coldest_shard()
                    self._account(shard_id, int(self._disk_usage[shard_id]) + size)
                    return
                except ValueError:
                    # Shards that others are fetching can be evicted when they are done.
                    others = int((self._shard_states.numpy() == _ShardState.PREPARING).sum()) > 1
                    if not others or time.monotonic() > deadline:
                        raise
            time.sleep(TICK)

    # Preparing shards ------------------------------------------------------------------------------------------

    def _own_process(self) -> "_Process":
        if self._process is None or self._process.pid != os.getpid():
            self._process = _Process()  # threads and connections do not survive a fork
        return self._process

    def _needed_of(self, shard_id: int) -> NDArray[np.int64] | None:
        """Ascending positions that this node needs of a shard in this epoch; ``None`` for all, outside of an epoch."""
        if self._needed is None or not self._by_ranges[shard_id]:
            return None
        start, samples = int(self.sample_offset_per_shard[shard_id]), self.shards[shard_id].samples
        first, shift = divmod(start, 8)
        bits = np.unpackbits(self._needed[first : -(-(start + samples) // 8)], count=shift + samples)[shift:]
        positions = np.flatnonzero(bits)
        return positions if len(positions) else None

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
        positions, missed = self._needed_of(shard_id), None
        if blocking and self._files.missed is not None and self._files.missed[0] == shard_id:
            missed = self._files.missed[1]
            if positions is not None and missed not in positions:
                positions = None  # read at random, beside the epoch
        self._prepare(int(shard_id), positions, blocking=blocking, recheck=missed is not None)

    def _prepare(
        self, shard_id: int, positions: NDArray[np.int64] | None, *, blocking: bool, recheck: bool = False
    ) -> None:
        """Prepare the given positions of a shard (``None`` for all), even where they seem to be there (`recheck`)."""
        while True:
            with self._cache_lock():
                state = int(self._shard_states[shard_id])
                if state == _ShardState.LOCAL and not self._lacks_raw(shard_id):
                    is_done = True
                else:
                    is_done = state == _READY and positions is not None and not recheck
                if is_done:
                    self._shard_access_times[shard_id] = time.time_ns()
                    return
                if state == _ShardState.INVALID:
                    raise RuntimeError(f"Invalid shard state: {state}")
                if state != _ShardState.PREPARING or not _is_alive(int(self._preparer[shard_id])):
                    self._shard_states[shard_id] = _ShardState.PREPARING
                    self._preparer[shard_id] = os.getpid()
                    break
            if not blocking:
                return
            if self._failure is not None:
                self._raise_failure()
            time.sleep(TICK)
        found: int | None = None
        try:
            found = self._fill(shard_id, positions)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                folder = self.streams[self.stream_per_shard[shard_id]].local
                raise OSError(
                    error.errno,
                    f"The disk of the cache is full, in {folder!r}. Free space there, name a local folder on a larger "
                    f"disk, or pass cache_limit (bytes; now {self.cache_limit}) so that old shards make room",
                ) from error
            raise
        finally:
            with self._cache_lock():
                usage = self._measured_usage(shard_id)
                if found is None:  # it failed
                    found = _PARTIAL if usage else _ShardState.REMOTE
                self._shard_states[shard_id] = found
                self._shard_access_times[shard_id] = time.time_ns()
                self._account(shard_id, usage)

    def _lacks_raw(self, shard_id: int) -> bool:
        """Whether a local shard has yet to be decompressed, or has lost a file."""
        shard = self.shards[shard_id]
        return not all(os.path.isfile(path_of(shard, raw)) for raw, _ in shard.file_pairs)

    def _fill(self, shard_id: int, positions: NDArray[np.int64] | None) -> int:
        """Fetch positions of a shard (``None`` for all) and return its new state."""
        stream, shard = self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]
        fetcher = self._own_process().fetcher
        if positions is not None and self._fill_sparsely(shard_id, positions):
            return _READY
        self._reserve(shard_id, shard.get_max_size())
        fetcher.fetch_whole(stream, shard)
        head = head_of(shard)
        if head is not None:
            for suffix in SPARSE_SUFFIXES:
                _discard(path_of(shard, head.data) + suffix)
        return _ShardState.LOCAL

    def _fill_sparsely(self, shard_id: int, positions: NDArray[np.int64]) -> bool:
        """Fetch positions by ranges, unless the whole shard costs no more; return whether it did."""
        stream, head = self.streams[self.stream_per_shard[shard_id]], head_of(self.shards[shard_id])
        assert head is not None, "by ranges"
        fetcher, size, samples = self._own_process().fetcher, head.data.bytes, head.shard.samples
        costs = {"size": size, "request_latency": self.request_latency, "min_gap": self.min_gap}
        sparse = open_sparse(head)
        if sparse is None:
            # Before asking where the samples are, see whether it can pay: as if all had the same size.
            estimate = np.linspace(0, size, samples + 1).astype(np.int64)
            if choose_ranges(estimate, positions, **costs) is None:
                return False
            table = fetcher.fetch_head(stream, head)
            path = path_of(head.shard, head.data)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._reserve(shard_id, len(table) + 4 * samples + 2 * _PAGE)
            sparse = SparseShard.create(path, table, size=size, samples=samples, parse=head.parse)
        missing = positions[~sparse.present()[positions]]
        if not len(missing):
            return True
        offsets = np.frombuffer(sparse.offsets, np.int64)
        runs = choose_ranges(offsets, missing, **costs)
        if runs is None:
            return False
        self._reserve(shard_id, int((offsets[runs[:, 1]] - offsets[runs[:, 0]] + 2 * _PAGE).sum()))
        fetcher.fetch_samples(stream, head, sparse, runs)
        return True

    # Reading ---------------------------------------------------------------------------------------------------

    def _raise_failure(self) -> None:
        if hasattr(self, "_event") and self._event.is_set():
            reason = "" if self._failure is None else f" It said: {type(self._failure).__name__}: {self._failure}"
            raise RuntimeError(f"Background thread failed. Check other traceback.{reason}") from self._failure

    def _share_work(self, sample_ids: NDArray[np.int64]) -> tuple[SharedMemory, SharedMemory | None]:
        """Called where an epoch is planned, before the node's other processes go on: tell them what is needed."""
        if self._by_ranges.any():
            mask = np.zeros(self.num_samples + 1, np.bool_)  # the last for -1, which pads
            for rank in sample_ids[self._parallel_worker_world.node]:
                for worker in rank:
                    mask[worker] = True
            write_bytes_whole(self._node_folder / "needed.bits", np.packbits(mask[:-1]).tobytes())
            with self._cache_lock():
                states = self._shard_states.numpy()
                states[states == _READY] = _PARTIAL
            self._look_up_needed()
        return super()._share_work(sample_ids)

    def _attach_work(self) -> tuple[NDArray[np.int64], SharedMemory, SharedMemory | None]:
        """Called in the node's other processes, before any of them goes on."""
        self._look_up_needed()
        return super()._attach_work()

    def _look_up_needed(self) -> None:
        if self._by_ranges.any():
            self._needed = np.memmap(self._node_folder / "needed.bits", np.uint8, "r")

    def _prepare_thread(self, it: Any) -> None:
        """Prepare shards ahead of the samples that are yielded, in the order of their first use."""
        try:
            self._prepare_ahead(it)
        except BaseException as error:
            self._failure = error
            self._event.set()
            raise
        finally:
            it.prepare_index = it.total
            it.on_exit()

    def _prepare_ahead(self, it: Any) -> None:
        pending: deque[Future[None]] = deque()
        pool = self._own_process().preparers
        # Shards that make room for each other are prepared one by one.
        at_once = 1 if self.cache_limit else _PREPARERS
        try:
            for position, shard_id in self._uses(it):
                while self.predownload is not None and position - it.yield_index > self.predownload:
                    if it.should_exit() or self._event.is_set():
                        return
                    time.sleep(TICK)
                if it.should_exit() or self._event.is_set():
                    return
                if self._shard_states[shard_id] == _ShardState.LOCAL:
                    self._shard_access_times[shard_id] = time.time_ns()
                    continue
                pending.append(pool.submit(self.prepare_shard, shard_id, False))
                if len(pending) >= at_once:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)  # none goes on into another epoch

    def _uses(self, it: Any) -> Iterator[tuple[int, int]]:
        """(position in the epoch, shard id) where a shard is used first; again after a while if it may be evicted."""
        seen = np.zeros(self.num_shards, np.bool_)
        block = max(self.predownload or 0, 1) if self.cache_limit else _BLOCK
        for start in range(0, it.total, block):
            it.prepare_index = start
            ids = it.sample_ids[start : start + block]
            positions = np.flatnonzero(ids >= 0)
            shards, firsts = np.unique(
                np.searchsorted(self.sample_offset_per_shard, ids[positions], "right") - 1, return_index=True
            )
            order = np.argsort(firsts)
            order = order[~seen[shards[order]]]
            if not self.cache_limit:
                seen[shards] = True
            yield from zip((start + positions[firsts[order]]).tolist(), shards[order].tolist(), strict=True)

    def _ready_thread(self, it: Any) -> None:
        """Has nothing to do: a sample that is not there yet is waited for where it is read."""
        it.ready_index = it.total
        it.on_exit()

    def _each_sample_id(self, it: Any) -> Iterator[int]:
        """Yield this worker's samples of the epoch."""
        for start in range(0, it.total, _BLOCK):
            for sample_id in it.sample_ids[start : start + _BLOCK].tolist():
                if it.should_exit():
                    it.on_exit()
                    return
                if self._event.is_set():
                    self._raise_failure()
                if sample_id >= 0:
                    yield sample_id
                it.yield_index += 1
        # What was removed by hand, and read on through the open file, is local again after the epoch.
        for shard_id in self._files.close_removed():
            if self._shard_states[shard_id] == _ShardState.LOCAL and self._evictable[shard_id]:
                self.prepare_shard(shard_id)
        it.on_exit()


class _Spanner:
    """Finds the shard of a sample, as streaming's Spanner does but without a span for every 1024 samples."""

    def __init__(self, first_ids: list[int], num_samples: int) -> None:
        self._first_ids, self._num_samples = first_ids, num_samples

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._num_samples:
            raise IndexError(f"Invalid sample index `{index}`: 0 <= {index} < {self._num_samples}")
        shard_id = bisect_right(self._first_ids, index) - 1
        return shard_id, int(index) - self._first_ids[shard_id]


class _Process:
    """What belongs to one process: threads and connections."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.fetcher = Fetcher()
        self.preparers = ThreadPoolExecutor(_PREPARERS, thread_name_prefix="prepare")

    def __reduce__(self) -> Any:
        return _Process, ()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False  # it was killed in the middle of its work
    except PermissionError:
        pass
    try:  # the parent of one that it ended may not have waited for it yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def _num_bytes(name: str, value: int | str) -> int:
    number = bytes_to_int(value)
    if number < 0:
        raise ValueError(f"{name} is {value}, expected 0 or more bytes.")
    return number


def _discard(path: str, *, cut: bool = True) -> None:
    """Remove a file; with `cut`, so that its blocks are free at once, whoever has it open.

    Its name never tells of a cut file.
    """
    aside = path + ".evicted"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if cut and not path.endswith(SPARSE_SUFFIXES[1]):  # that one is mapped, and a map of a cut file ends a process
        os.truncate(aside, 0)
    os.unlink(aside)


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked worker must not take the folder away from its parent
        shutil.rmtree(folder, ignore_errors=True)
