"""What a process does in an epoch: it prepares shards ahead of the samples that it yields."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from streaming.base.constant import TICK
from streaming.base.dataset import StreamingDataset, _Iterator, _IterState, _ShardState

__all__ = ["ReadAhead"]

_PREPARERS = 4  # shards that a process prepares at once
_BLOCK = 1 << 14  # samples whose shards are looked up at once


class ReadAhead:
    """The threads of one process that prepare shards, and the error that ended them.

    Its methods are given the dataset, and it keeps none: threads and errors belong to a process, so in another one
    there is a new one of it.

    Attributes:
        failure: what ended the preparing in this epoch, if something did.
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._pool = ThreadPoolExecutor(_PREPARERS, thread_name_prefix="prepare")

    def __reduce__(self) -> Any:
        return ReadAhead, ()

    def begin(self) -> None:
        """Leave behind what ended the preparing in another epoch: it may have been mended."""
        self.failure = None

    def check(self) -> None:
        """Raise in another thread what ended the preparing, if something did."""
        if self.failure is not None:
            raise self.failure

    def prepare(self, dataset: StreamingDataset, it: _Iterator) -> None:
        """Prepare shards ahead of the samples that are yielded, in the order of their first use.

        It raises nothing, which streaming would log as an error of its own: what fails is the failure.
        """
        try:
            self._prepare(dataset, it)
        except BaseException as error:
            self.failure = error
        finally:
            it.prepare_index = it.total
            it.on_exit()

    def _prepare(self, dataset: StreamingDataset, it: _Iterator) -> None:
        pending: deque[Future[None]] = deque()
        # Shards that make room for each other are prepared one by one.
        at_once = 1 if dataset.cache_limit else _PREPARERS
        try:
            for position, shard_id in _uses(dataset, it):
                while dataset.predownload is not None and position - it.yield_index > dataset.predownload:
                    if it.should_exit() or dataset._event.is_set():
                        return
                    time.sleep(TICK)
                if it.should_exit() or dataset._event.is_set():
                    return
                if dataset._shard_states[shard_id] == _ShardState.LOCAL:
                    dataset._shard_access_times[shard_id] = time.time_ns()
                    continue
                pending.append(self._pool.submit(dataset.prepare_shard, shard_id, False))
                if len(pending) >= at_once:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)  # none goes on into another epoch

    def sample_ids(self, dataset: StreamingDataset, it: _Iterator, at_end: Callable[[], None]) -> Iterator[int]:
        """Yield this process's samples of the epoch. One that is not there yet is waited for where it is read.

        Args:
            dataset: whose epoch it is.
            it: the epoch.
            at_end: is called when all have been yielded, and not if the epoch is left before.
        """
        pid = os.getpid()
        for start in range(0, it.total, _BLOCK):
            for sample_id in it.sample_ids[start : start + _BLOCK].tolist():
                if it.should_exit():
                    it.on_exit()
                    _refuse_iterator_of(pid)
                    return
                self.check()
                if sample_id >= 0:
                    try:
                        yield sample_id
                    except GeneratorExit:
                        # Its threads must not wait, and hold the dataset, for ever. Garbage is collected at any moment,
                        # also while one of them has the lock of non_blocking_exit().
                        if it._state == _IterState.ITERATING:
                            it._state = _IterState.EXITING
                        raise
                it.yield_index += 1
        _refuse_iterator_of(pid)
        at_end()
        it.on_exit()


def _uses(dataset: StreamingDataset, it: _Iterator) -> Iterator[tuple[int, int]]:
    """(position in the epoch, shard id) where a shard is used first; again after a while if it may be evicted."""
    seen = np.zeros(dataset.num_shards, np.bool_)
    block = max(dataset.predownload or 0, 1) if dataset.cache_limit else _BLOCK
    for start in range(0, it.total, block):
        it.prepare_index = start
        ids = it.sample_ids[start : start + block]
        positions = np.flatnonzero(ids >= 0)
        shards, firsts = np.unique(
            np.searchsorted(dataset.sample_offset_per_shard, ids[positions], "right") - 1, return_index=True
        )
        order = np.argsort(firsts)
        order = order[~seen[shards[order]]]
        if not dataset.cache_limit:
            seen[shards] = True
        yield from zip((start + positions[firsts[order]]).tolist(), shards[order].tolist(), strict=True)


def _refuse_iterator_of(pid: int) -> None:
    if os.getpid() != pid:
        raise RuntimeError(
            f"This iterator was made in process {pid}, and its threads are there, not in process {os.getpid()}, which "
            "was forked meanwhile: it cannot go on here. Call iter() on the dataset in the process that reads."
        )
