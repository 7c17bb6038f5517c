"""Who prepares a shard, and when: no further ahead than asked, in room that there is, and one at a time."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streaming.base.dataset import _Iterator, _ShardState

from ted_stream import PrunedStreamingDataset
from ted_stream.reading import node_cache, read_ahead, shard_reading
from ted_stream.reading.fetching import Fetcher
from ted_stream.reading.node_cache import READY, Claim

NUM_SAMPLES = 120


@pytest.fixture(scope="module")
def remote(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES, per_shard=10)


@pytest.fixture
def dataset(remote: str, tmp_path: Path) -> PrunedStreamingDataset:
    dataset = PrunedStreamingDataset(remote=remote, local=str(tmp_path), batch_size=4)
    dataset._event = threading.Event()  # as streaming does where an iteration begins
    return dataset


class AtOnce:
    """A pool that has done what is submitted."""

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        done: Future[None] = Future()
        function(*arguments)
        done.set_result(None)
        return done


def test_who_waits_for_another_says_so_once(
    dataset: PrunedStreamingDataset,
    remote: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Since the other may be stuck for ever, with a cure that a waiting engineer would not guess."""
    at_work, may_go_on, fetch = threading.Event(), threading.Event(), Fetcher.fetch_whole

    def slow(fetcher: Fetcher, stream: Any, shard: Any) -> None:
        at_work.set()
        assert may_go_on.wait(60)
        fetch(fetcher, stream, shard)

    monkeypatch.setattr(Fetcher, "fetch_whole", slow)
    monkeypatch.setattr(shard_reading, "_PATIENCE", 0.1)
    at = int(dataset.sample_offset_per_shard[3])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(dataset.__getitem__, at)
        assert at_work.wait(60)
        second = pool.submit(dataset.__getitem__, at + 1)
        while not caplog.records:
            time.sleep(0.01)
        time.sleep(0.3)
        may_go_on.set()
        assert [one.result()["id"] for one in (first, second)] == [at, at + 1]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    told = f"Process {os.getpid()} has waited 0.1 s for shard 3, of {remote}, on which process {os.getpid()} is at work"
    assert told in record.getMessage()
    assert 'multiprocessing_context="forkserver"' in record.getMessage()


@pytest.mark.long
@pytest.mark.parametrize("cache_limit", [None, 1 << 30])
@pytest.mark.parametrize("predownload", [0, 1, 25, None])
def test_shards_are_prepared_no_further_ahead_than_asked(
    dataset: PrunedStreamingDataset,
    monkeypatch: pytest.MonkeyPatch,
    predownload: int | None,
    cache_limit: int | None,
) -> None:
    rng = np.random.default_rng(0)
    ids = np.concatenate(([0], rng.permutation(NUM_SAMPLES)[:70], [-1, -1], rng.permutation(NUM_SAMPLES)[:30]))
    dataset.predownload, dataset.cache_limit = predownload, cache_limit
    it, prepared, expected = _Iterator(ids), [], []

    def yield_another(seconds: float) -> None:
        it.yield_index += 1

    monkeypatch.setattr(dataset._ahead, "_pool", AtOnce())
    monkeypatch.setattr(read_ahead, "time", SimpleNamespace(sleep=yield_another, time_ns=time.time_ns))
    monkeypatch.setattr(dataset, "prepare_shard", lambda shard, blocking: prepared.append((it.yield_index, shard)))
    dataset._ahead.prepare(dataset, it)
    # Once for all; or again in every block of so many samples, since it may have been evicted.
    block, seen = len(ids) if cache_limit is None else max(predownload or 0, 1), set[int]()
    for position, sample_id in enumerate(ids.tolist()):
        if position % block == 0:
            seen.clear()
        if sample_id >= 0 and (shard := dataset.spanner[sample_id][0]) not in seen:
            expected.append((0 if predownload is None else max(position - predownload, 0), shard))
            seen.add(shard)
    assert prepared == expected


def test_no_work_goes_on_when_preparing_has_failed(
    dataset: PrunedStreamingDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = [], []

    def prepare(shard_id: int, blocking: bool) -> None:
        begun.append(shard_id)
        if shard_id == 0:
            raise OSError("the first one fails")
        time.sleep(0.05)
        ended.append(shard_id)

    dataset.predownload = NUM_SAMPLES
    monkeypatch.setattr(dataset, "prepare_shard", prepare)
    dataset._ahead.prepare(dataset, _Iterator(np.arange(NUM_SAMPLES)))
    assert sorted(begun) == [0, *sorted(ended)]
    with pytest.raises(OSError, match="the first one fails"):
        dataset._ahead.check()


def test_what_fails_ahead_is_the_one_error(
    dataset: PrunedStreamingDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of its own kind, and in the place of the next sample; streaming's own log has no other."""
    prepare = dataset.prepare_shard

    def failing(shard_id: int, blocking: bool = True) -> None:
        if shard_id == 5:
            raise OSError("the sixth one fails")
        prepare(shard_id, blocking)

    dataset.predownload = NUM_SAMPLES
    monkeypatch.setattr(dataset, "prepare_shard", failing)
    samples = iter(dataset)
    assert next(samples)["id"] == 0
    while dataset._ahead.failure is None:
        time.sleep(0.01)
    for again in (samples, iter(dataset)):
        with pytest.raises(OSError, match="the sixth one fails"):
            list(again)
    assert not caplog.records
    monkeypatch.undo()
    assert [sample["id"] for sample in dataset] == list(range(NUM_SAMPLES))  # once that is mended


def test_an_epoch_begins_without_the_failure_of_another(dataset: PrunedStreamingDataset) -> None:
    """In the process that plans it, and in those that are told of it, which live on between epochs."""
    ids, memories = np.arange(NUM_SAMPLES).reshape(1, 1, 1, -1, 4), list[Any]()
    dataset._parallel_worker_world = dataset._parallel_rank_world.detect_workers()
    for begin in (lambda: dataset._share_work(ids), lambda: dataset._attach_work()[1:]):
        dataset._ahead.failure = OSError("the disk was full")
        memories += begin()
        dataset._ahead.check()
    for memory in memories:
        memory.cleanup()


def test_room_is_waited_for_while_somebody_else_is_at_work(
    dataset: PrunedStreamingDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, now, ends = dataset._cache, [0.0], list[float]()

    def sleep(seconds: float) -> None:
        now[0] += 1
        if now[0] in ends:
            cache.settle(1, None)  # has nothing to show

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep, time_ns=time.time_ns)
    monkeypatch.setattr(node_cache, "time", clock)
    limit = dataset.cache_usage + 1000
    room: dict[str, Any] = {"limit": limit, "timeout": 10}
    assert cache.claim(0, ready_suffices=False) is Claim.GRANTED
    cache.reserve(0, 1000, **room)  # exactly
    assert dataset.cache_usage == limit
    with pytest.raises(ValueError, match=rf"cache_limit is {limit} bytes, {limit} are in use, and no shard"):
        cache.reserve(0, 1, **room)
    assert now == [0]  # nobody else will make room
    cache.settle(0, None)
    assert (cache.claim(0, ready_suffices=False), cache.claim(1, ready_suffices=False)) == (Claim.GRANTED,) * 2
    cache.reserve(1, 600, **room)
    with pytest.raises(ValueError, match="no shard"):
        cache.reserve(0, 600, **room)
    assert now == [11]
    ends.append(15)
    cache.reserve(0, 600, **room)
    assert now == [15]
    assert dataset.cache_usage == limit - 400


def test_what_processes_share_is_written_under_the_lock(
    dataset: PrunedStreamingDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = dataset._cache
    states = cache._states

    class Lock:
        held = False

        def __enter__(self) -> None:
            assert not self.held
            Lock.held = True

        def __exit__(self, *error: object) -> None:
            Lock.held = False

    class Guarded:
        """What may be looked at, and written, by who has the lock."""

        def __init__(self, shared: Any) -> None:
            self._shared = shared

        def __getattr__(self, name: str) -> Any:
            assert Lock.held, name
            return getattr(self._shared, name)

        def __getitem__(self, index: int) -> Any:
            assert Lock.held
            return self._shared[index]

        def __setitem__(self, index: int, value: Any) -> None:
            assert Lock.held
            self._shared[index] = value

    monkeypatch.setattr(cache, "_lock", Lock())
    for name in ("_states", "_access_times", "_usage", "disk_usage", "preparers"):
        monkeypatch.setattr(cache, name, Guarded(getattr(cache, name)))
    for shard_id, state in enumerate((READY, _ShardState.LOCAL, None)):
        assert cache.claim(shard_id, ready_suffices=True) is Claim.GRANTED
        assert cache.claim(shard_id, ready_suffices=True) is Claim.TAKEN
        cache.reserve(shard_id, 100, limit=1 << 20, timeout=0)
        cache.settle(shard_id, state)
    assert cache.claim(0, ready_suffices=True) is Claim.NEEDLESS
    cache.expect_others()
    assert cache.claim(0, ready_suffices=True) is Claim.GRANTED
    assert states[2] == _ShardState.REMOTE


def test_a_process_is_alive_where_nothing_tells_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, which has no /proc."""

    def absent(self: Path) -> str:
        raise FileNotFoundError(self)

    def another_users(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", absent)
    assert node_cache.is_alive(os.getpid())
    assert not node_cache.is_alive(1 << 30)
    monkeypatch.setattr(os, "kill", another_users)
    assert node_cache.is_alive(os.getpid())
