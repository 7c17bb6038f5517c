"""What is asked of a store, what is on disk then, and that samples are right whatever happens on the way."""

import contextlib
import errno
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from streaming import JSONWriter, MDSWriter, Stream, StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.hashing import get_hash
from streaming.vision.base import StreamingVisionDataset
from tars import NUM_SAMPLES as NUM_IN_TARS
from tars import PER_SHARD, SHARDS
from tars import write_shards as write_tars
from torch.utils.data import DataLoader

from ted_stream import Prunable, PrunedStreamingDataset, SkipList
from ted_stream.reading import fetching, shard_files
from ted_stream.reading.fetching import Fetcher
from ted_stream.reading.node_cache import NodeCache
from ted_stream.reading.sources import LocalSource
from ted_stream.reading.tar_index import index_tars
from ted_stream.stores import TransientError, base

NUM_SAMPLES = 240
SMALL: dict[str, Any] = {
    "request_latency": 1024,
    "min_gap": 1024,
}  # the samples here are small, and so are requests' costs


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards of samples of 2 to 12 KB."""
    return write_shards(tmp_path_factory.mktemp("remote") / "mds")


def write_shards(folder: Path, **arguments: Any) -> Path:
    """With hashes, so that nothing but samples is asked for."""
    rng = np.random.default_rng(0)
    settings = {"size_limit": 170_000, "hashes": ["sha1"], **arguments}
    with MDSWriter(out=str(folder), columns={"id": "int", "x": "bytes"}, **settings) as writer:
        for index in range(NUM_SAMPLES):
            writer.write({"id": index, "x": rng.bytes(int(rng.integers(2_000, 12_000)))})
    return folder


@pytest.fixture(scope="module")
def truth(remote: Path) -> list[dict[str, Any]]:
    dataset = StreamingDataset(local=str(remote), batch_size=1)
    return [dataset[index] for index in range(NUM_SAMPLES)]


@dataclass
class Requests:
    """What was asked of the store, by this process and the ones that it forked."""

    log: Path
    seen: set[tuple[str, int, int]] = field(default_factory=set)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        if self.log.exists():
            for line in self.log.read_text().splitlines():
                name, begin, end = line.split()
                yield name, int(begin), int(end)

    @property
    def num_bytes(self) -> int:
        return sum(end - begin for _, begin, end in self)

    def clear(self) -> None:
        self.log.unlink(missing_ok=True)


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Requests:
    requests = Requests(tmp_path / "requests")
    real = LocalSource.read

    def read(self: LocalSource, name: str, begin: int, end: int, *, size: int) -> bytes:
        with open(requests.log, "a") as file:
            file.write(f"{Path(name).name} {begin} {end}\n")
        return real(self, name, begin, end, size=size)

    monkeypatch.setattr(LocalSource, "read", read)
    return requests


def dataset_of(remote: Path | str, local: Path, **arguments: Any) -> PrunedStreamingDataset:
    return PrunedStreamingDataset(
        remote=str(remote), local=str(local), **({"batch_size": 4, "shuffle": True, **SMALL} | arguments)
    )


def random_mask(keep: float, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(NUM_SAMPLES) < keep


def keep_only(dataset: PrunedStreamingDataset, mask: NDArray[np.bool_]) -> None:
    skip_list = SkipList.from_keep_mask(dataset.layout, mask, epoch=0, keep_ratio=0.5, method="test", run="test")
    dataset.activate(skip_list, sample_ids=False)


def check(samples: list[dict[str, Any]], mask: NDArray[np.bool_], truth: list[dict[str, Any]]) -> None:
    assert sorted(sample["id"] for sample in samples) == np.flatnonzero(mask).tolist()
    assert all(sample == truth[sample["id"]] for sample in samples)


def read_epoch(dataset: PrunedStreamingDataset, workers: int = 0) -> list[dict[str, Any]]:
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list)
    return [sample for batch in loader for sample in batch]


def disk_usage(folder: Path) -> int:
    usage = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process works here
            status = path.stat()
            usage += min(status.st_size, 512 * status.st_blocks) * (path.name != "index.json")
    return usage


def check_accounted(dataset: PrunedStreamingDataset, cache: Path) -> None:
    """What is accounted is what is on disk, and a block a file for the list of its extents, which may be there."""
    for path in cache.iterdir():  # when a file system may add blocks of its own
        with path.open("rb") as file:
            os.fsync(file.fileno())
    usage = dataset.cache_usage - (cache / "index.json").stat().st_size
    assert 0 <= usage - disk_usage(cache) <= 4096 * len(list(cache.glob("*.sparse")))


def size_of(truth: list[dict[str, Any]], mask: NDArray[np.bool_]) -> int:
    return sum(12 + len(truth[index]["x"]) for index in np.flatnonzero(mask))


@pytest.mark.long
@pytest.mark.parametrize("keep", [0.5, 0.3, 0.1])
def test_little_more_is_asked_for_than_is_kept(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, requests: Requests, keep: float
) -> None:
    dataset = dataset_of(remote, tmp_path / "cache")
    mask = random_mask(keep)
    mask[:30] = False  # the first shard
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)
    assert size_of(truth, mask) <= requests.num_bytes <= 1.15 * size_of(truth, mask)
    assert "shard.00000.mds" not in {name for name, _, _ in requests}
    assert not list((tmp_path / "cache").glob("*.mds"))
    check_accounted(dataset, tmp_path / "cache")
    # Every sample takes up to two blocks more than it fills; holes take none.
    assert disk_usage(tmp_path / "cache") <= size_of(truth, mask) + 2 * 4096 * mask.sum() + 10 * 4096


def test_later_epochs_and_runs_fetch_what_is_missing(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, requests: Requests
) -> None:
    first, second = random_mask(0.3), random_mask(0.3, seed=1)
    first[-1] = second[-1] = False  # alone in its shard, which would come whole
    dataset = dataset_of(remote, tmp_path / "cache", min_gap=0)
    keep_only(dataset, first)
    check(read_epoch(dataset), first, truth)
    requests.clear()
    check(read_epoch(dataset), first, truth)
    assert not list(requests)
    keep_only(dataset, second)
    check(read_epoch(dataset), second, truth)
    assert requests.num_bytes == size_of(truth, second & ~first)
    del dataset
    requests.clear()
    dataset = dataset_of(remote, tmp_path / "cache", min_gap=0)
    keep_only(dataset, first | second)
    check(read_epoch(dataset), first | second, truth)
    assert not list(requests)
    every = np.ones(NUM_SAMPLES, np.bool_)
    dataset.activate(None, sample_ids=False)
    check(read_epoch(dataset), every, truth)
    rest = ~(first | second)
    rest[-1] = False
    assert requests.num_bytes == size_of(truth, rest) + (remote / "shard.00010.mds").stat().st_size


def test_a_whole_shard_takes_the_place_of_its_parts(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, requests: Requests
) -> None:
    mask = random_mask(0.1)
    dataset = dataset_of(remote, tmp_path / "cache")
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)
    dataset.request_latency = 100_000
    dataset.activate(None, sample_ids=False)
    check(read_epoch(dataset), np.ones(NUM_SAMPLES, np.bool_), truth)
    assert not list((tmp_path / "cache").glob("*.sparse"))
    assert disk_usage(tmp_path / "cache") == sum(path.stat().st_size for path in remote.glob("*.mds"))


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_what_is_fetched(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, requests: Requests, workers: int
) -> None:
    dataset = dataset_of(remote, tmp_path / "cache")
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=True, collate_fn=list)
    for seed in range(3):
        mask = random_mask(0.3, seed)
        keep_only(dataset, mask)
        check([sample for batch in loader for sample in batch], mask, truth)
    asked = list(requests)
    assert len(asked) == len(set(asked))


def test_full_shards_costly_requests_and_compressed_shards_come_whole(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, requests: Requests
) -> None:
    sizes = {path.name: path.stat().st_size for path in remote.glob("*.mds")}
    dataset = dataset_of(remote, tmp_path / "a", request_latency="1gb")
    mask = random_mask(0.3)
    mask[-1] = True  # so that every shard is needed
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)
    assert sorted(requests) == [(name, 0, size) for name, size in sorted(sizes.items())]
    requests.clear()
    dataset = dataset_of(remote, tmp_path / "b")
    check(read_epoch(dataset), np.ones(NUM_SAMPLES, np.bool_), truth)
    assert sorted(requests) == [(name, 0, size) for name, size in sorted(sizes.items())]
    compressed = write_shards(tmp_path / "zstd", compression="zstd")
    dataset = dataset_of(compressed, tmp_path / "c")
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)
    assert len(list((tmp_path / "c").glob("*.mds"))) == len(sizes)
    # Beside another stream that is read by ranges.
    places = ((compressed, tmp_path / "d"), (remote, tmp_path / "e"))
    streams = [Stream(remote=str(elsewhere), local=str(local)) for elsewhere, local in places]
    dataset = PrunedStreamingDataset(streams=streams, batch_size=4, **SMALL)
    requests.clear()
    keep_only(dataset, np.tile(mask, 2))
    assert len(read_epoch(dataset)) == 2 * mask.sum()
    assert requests.num_bytes <= 1.15 * size_of(truth, mask) + sizes["shard.00010.mds"]


def test_tars_are_fetched_by_ranges(tmp_path: Path, requests: Requests) -> None:
    cache, mask = tmp_path / "cache", np.arange(NUM_IN_TARS) % 5 == 0
    index_tars(write_tars(tmp_path / "tars"))
    requests.clear()
    dataset = dataset_of(tmp_path / "tars", cache, request_latency=64, min_gap=64)
    keep_only(dataset, mask)

    def epoch() -> list[int]:
        return sorted(sample["json"]["id"] for sample in read_epoch(dataset))

    def names() -> list[str]:
        return sorted({name for name, _, _ in requests})

    tars = [f"x-{shard}.tar" for shard in range(SHARDS)]
    assert epoch() == np.flatnonzero(mask).tolist()
    assert not list(cache.glob("*.tar"))
    assert names() == sorted([*tars, *(f"{tar}.offsets" for tar in tars)])
    # Where the samples are is known from then on, whatever becomes of them.
    for shard in range(SHARDS):
        dataset.evict_shard(shard)
    requests.clear()
    assert epoch() == np.flatnonzero(mask).tolist()
    assert names() == tars
    # A whole shard that has lost one of its files is fetched again.
    dataset.request_latency = 1 << 20
    dataset.activate(None, sample_ids=False)
    assert epoch() == list(range(NUM_IN_TARS))
    (cache / f"{tars[1]}.offsets").unlink()
    dataset._files.close()
    assert dataset[PER_SHARD]["json"] == {"id": PER_SHARD}


def test_a_shard_that_is_removed_by_hand_comes_back(remote: Path, truth: list[dict[str, Any]], tmp_path: Path) -> None:
    """After an epoch, which reads it through the file that is open; where it is in no other place, it does not."""
    every = np.ones(NUM_SAMPLES, np.bool_)
    own = write_shards(tmp_path / "own")
    for dataset, folder in (
        (dataset_of(remote, tmp_path / "cache"), tmp_path / "cache"),
        (PrunedStreamingDataset(local=str(own), batch_size=4), own),
    ):
        check(read_epoch(dataset), every, truth)
        (folder / "shard.00002.mds").unlink()
        check(read_epoch(dataset), every, truth)
        assert (folder / "shard.00002.mds").exists() == (folder != own)


def test_reading_at_random_fetches_whole_shards(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, requests: Requests
) -> None:
    dataset = dataset_of(remote, tmp_path / "cache")
    assert [dataset[index] for index in (3, 4, -1)] == [truth[3], truth[4], truth[-1]]
    assert len(list(requests)) == 2
    # Beside an epoch, of a shard of which a part is there.
    mask = random_mask(0.2)
    mask[100] = False
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)
    assert dataset[100] == truth[100]
    with pytest.raises(IndexError, match="Invalid sample index"):
        dataset.get_item(NUM_SAMPLES)
    # A copy is in no epoch, and so needs all of a shard that the epoch needs a part of.
    assert (tmp_path / "cache" / "shard.00002.mds.sparse").exists()
    pickle.loads(pickle.dumps(dataset)).prepare_shard(2)
    requests.clear()
    first, stop = dataset.sample_offset_per_shard[2:4].tolist()
    assert [dataset[index] for index in range(first, stop)] == truth[first:stop]
    assert not list(requests)


def test_shards_in_folders_of_their_own(remote: Path, truth: list[dict[str, Any]], tmp_path: Path) -> None:
    """As streaming's merge_index leaves them where they are."""
    index = json.loads((remote / "index.json").read_text())
    for shard in index["shards"]:
        name = shard["raw_data"]["basename"]
        shard["raw_data"]["basename"] = f"a/{name}/{name}"
        (tmp_path / "remote" / "a" / name).mkdir(parents=True)
        (tmp_path / "remote" / "a" / name / name).symlink_to(remote / name)
    (tmp_path / "remote" / "index.json").write_text(json.dumps(index))
    for keep in (0.2, 1.0):
        dataset = dataset_of(tmp_path / "remote", tmp_path / f"cache{keep}")
        keep_only(dataset, random_mask(keep))
        check(read_epoch(dataset), random_mask(keep), truth)


def test_what_is_built_on_streaming_reads_sparse_shards(tmp_path: Path) -> None:
    class Mine(Prunable, StreamingVisionDataset):
        pass

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), np.uint8)
    with MDSWriter(
        out=str(tmp_path / "remote"), columns={"x": "png", "y": "int"}, size_limit=10_000, hashes=["sha1"]
    ) as writer:
        for index, image in enumerate(images):
            writer.write({"x": Image.fromarray(image), "y": index})
    mask = rng.random(40) < 0.3
    places = {"remote": str(tmp_path / "remote"), "local": str(tmp_path / "cache")}
    dataset = Mine(**places, batch_size=4, num_canonical_nodes=1, **SMALL)
    dataset.activate(
        SkipList.from_keep_mask(dataset.layout, mask, epoch=0, keep_ratio=0.3, method="test", run="test"),
        sample_ids=False,
    )
    stock = StreamingVisionDataset(local=str(tmp_path / "remote"), batch_size=4)
    samples = sorted(((label, np.asarray(image)) for image, label in dataset), key=lambda sample: sample[0])
    assert [label for label, _ in samples] == np.flatnonzero(mask).tolist()
    assert all(np.array_equal(image, np.asarray(stock[label][0])) for label, image in samples)
    assert list((tmp_path / "cache").glob("*.sparse"))


@pytest.mark.long
def test_spawned_workers_fetch(remote: Path, truth: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = dataset_of(remote, tmp_path / "cache")
    mask = random_mask(0.3)
    keep_only(dataset, mask)
    assert dataset[0] == truth[0]  # files, threads, connections and locks exist here by now
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context="spawn")
    check([sample for batch in loader for sample in batch], mask, truth)


def test_many_shards_and_few_open_files(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 2)
    dataset = dataset_of(remote, tmp_path / "cache")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    keep_only(dataset, random_mask(0.3))
    check(read_epoch(dataset), random_mask(0.3), truth)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3 + 2  # and the list of what is needed


# The cache's limit -----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_stays_under_its_limit(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, limit = tmp_path / "cache", 700_000
    dataset = dataset_of(remote, cache, cache_limit=limit, predownload=4)
    seen = []
    real = NodeCache._account

    def account(self: NodeCache, shard_id: int, usage: int) -> None:
        real(self, shard_id, usage)
        seen.append(dataset.cache_usage)
        # Called with the lock held. What is being fetched is accounted before it is on disk.
        assert disk_usage(cache) <= dataset.cache_usage <= limit + 40_000

    monkeypatch.setattr(NodeCache, "_account", account)
    for keep, seed in ((0.4, 0), (1.0, 0), (0.4, 1)):
        mask = random_mask(keep, seed)
        keep_only(dataset, mask)
        check(read_epoch(dataset, workers), mask, truth)
    assert workers or max(seen) > 500_000  # it was of use
    check_accounted(dataset, cache)
    while dataset.cache_usage > (cache / "index.json").stat().st_size:
        dataset.evict_coldest_shard()
    assert [path.name for path in cache.iterdir()] == ["index.json"]
    with pytest.raises(ValueError, match="cache_limit is 700000 bytes"):
        dataset.evict_coldest_shard()


@pytest.mark.long
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_what_has_no_elsewhere_is_never_evicted(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, compression: str | None
) -> None:
    own = write_shards(tmp_path / "own", compression=compression)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    streams = [Stream(local=str(own)), Stream(remote=str(remote), local=str(tmp_path / "cache"))]
    dataset = PrunedStreamingDataset(streams=streams, batch_size=4, shuffle=True, cache_limit=1_600_000, predownload=4)
    for _ in range(2):
        assert len(read_epoch(dataset)) == 2 * NUM_SAMPLES
    assert before.items() <= {path.name: path.read_bytes() for path in own.iterdir()}.items()
    # One folder under two names is no cache.
    dataset = dataset_of(f"{own}/", own, cache_limit=1_600_000)
    check(read_epoch(dataset), np.ones(NUM_SAMPLES, np.bool_), truth)
    with pytest.raises(ValueError, match="no shard is there to be evicted"):
        dataset.evict_coldest_shard()
    assert before.items() <= {path.name: path.read_bytes() for path in own.iterdir()}.items()


def test_shards_that_are_opened_while_they_are_evicted(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A reader that comes in between sees a sample, or that it is not there; never a file that was cut."""
    dataset = dataset_of(remote, tmp_path / "cache")
    stop = threading.Event()

    def evict() -> None:
        while not stop.is_set():
            dataset.evict_shard(0)
            dataset.prepare_shard(0)

    evicting = threading.Thread(target=evict)
    evicting.start()
    try:
        tries = found = 0
        deadline = time.monotonic() + 60  # where the disk is slow, the first 3000 tries come before the shard
        while tries < 3000 or (not found and time.monotonic() < deadline):
            tries += 1
            dataset._files.close()
            with contextlib.suppress(FileNotFoundError):
                assert dataset.shards[0][3] == truth[3]
                found += 1
    finally:
        stop.set()
        evicting.join()
    assert found


def test_a_worker_that_is_gone_holds_nobody_up(remote: Path, truth: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = dataset_of(remote, tmp_path / "cache")
    gone = subprocess.Popen([sys.executable, "-c", ""])  # not waited for until the end: a zombie
    time.sleep(0.2)
    dataset._shard_states[0] = _ShardState.PREPARING
    dataset._cache.preparers[0] = gone.pid
    assert dataset[0] == truth[0]
    gone.wait()
    dataset._shard_states[1] = _ShardState.PREPARING
    dataset._cache.preparers[1] = gone.pid
    first = int(dataset.sample_offset_per_shard[1])
    assert dataset[first] == truth[first]


def test_two_writers_of_a_shard_leave_a_whole_one(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that outlived its run is still writing when the next run fetches the same shard."""
    dataset = dataset_of(remote, tmp_path / "cache")
    stream, shard = dataset.streams[0], dataset.shards[0]
    real, inside = LocalSource.read, [0]
    fsync, replace, synced = os.fsync, Path.replace, set[int]()

    def sync(file: int) -> None:
        fsync(file)
        synced.add(os.fstat(file).st_ino)

    def rename(self: Path, target: Any) -> Path:
        assert self.stat().st_ino in synced, "it must be on disk before it has the name that is trusted"
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)

    def read(self: LocalSource, name: str, begin: int, end: int, *, size: int) -> bytes:
        inside[0] += 1
        if inside[0] == 1:
            Fetcher().fetch_whole(stream, shard)  # the other one, from begin to end
        return real(self, name, begin, end, size=size)

    monkeypatch.setattr(LocalSource, "read", read)
    Fetcher().fetch_whole(stream, shard)
    assert (tmp_path / "cache" / "shard.00000.mds").read_bytes() == (remote / "shard.00000.mds").read_bytes()
    assert not list((tmp_path / "cache").glob("*.tmp"))
    assert dataset[0] == truth[0]


# Faults ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_spoils_nothing(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for keep in (1.0, 0.3):
        cache, mask = tmp_path / f"cache{keep}", random_mask(keep)
        dataset = dataset_of(remote, cache)
        keep_only(dataset, mask)
        real, room = os.pwrite, [100_000]

        def pwrite(file: int, data: bytes, offset: int, real: Any = real, room: list[int] = room) -> int:
            if room[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = real(file, data[: room[0]], offset)
            room[0] -= written
            return written

        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises((OSError, RuntimeError), match=r"disk of the cache is full, in .*cache.*cache_limit"):
            read_epoch(dataset)
        monkeypatch.setattr(os, "pwrite", real)
        del dataset
        dataset = dataset_of(remote, cache)
        keep_only(dataset, mask)
        check(read_epoch(dataset), mask, truth)
        del dataset


def test_transient_faults_are_tried_again(
    remote: Path, truth: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_FIRST_PAUSE", 0.001)
    rng, real = np.random.default_rng(0), LocalSource.read

    def read(self: LocalSource, name: str, begin: int, end: int, *, size: int) -> bytes:
        data = real(self, name, begin, end, size=size)
        fault = rng.random()
        if fault < 0.3:
            raise TransientError("the server is busy")
        return data[: len(data) // 2] if fault < 0.5 else data

    monkeypatch.setattr(LocalSource, "read", read)
    dataset = dataset_of(remote, tmp_path / "cache")
    mask = random_mask(0.4)
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)


def test_faults_that_stay_are_errors_of_the_epoch(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(base, "_LONGEST_PAUSE", 0.002)
    real = LocalSource.read

    def read(self: LocalSource, name: str, begin: int, end: int, *, size: int) -> bytes:
        if "00007" in name:
            raise TransientError(f"{name}: the server is busy")
        return real(self, name, begin, end, size=size)

    monkeypatch.setattr(LocalSource, "read", read)
    dataset = dataset_of(remote, tmp_path / "cache")
    keep_only(dataset, random_mask(0.4))
    with pytest.raises((ConnectionError, RuntimeError), match=r"10 attempts.*shard\.00007\.mds: the server is busy"):
        read_epoch(dataset)


def test_a_remote_that_does_not_fit_its_index_is_named(remote: Path, tmp_path: Path) -> None:
    copy = tmp_path / "remote"
    copy.mkdir()
    for path in remote.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with open(copy / "shard.00003.mds", "ab") as file:
        file.write(b"x")
    for folder, keep in (("a", 0.4), ("b", 1.0)):
        dataset = dataset_of(copy, tmp_path / folder)
        keep_only(dataset, random_mask(keep))
        with pytest.raises((ValueError, RuntimeError), match=r"shard\.00003\.mds has \d+ bytes, its index says \d+"):
            read_epoch(dataset)
    (copy / "shard.00003.mds").unlink()
    dataset = dataset_of(copy, tmp_path / "c")
    with pytest.raises((OSError, RuntimeError), match=r"shard\.00003\.mds"):
        read_epoch(dataset)
    # A file without an elsewhere is never thrown away.
    os.truncate(copy / "shard.00004.mds", 1000)
    dataset = PrunedStreamingDataset(local=str(copy), batch_size=4)
    with pytest.raises(ValueError, match=r"shard\.00004\.mds has 1000 bytes, its index says \d+"):
        dataset[int(dataset.sample_offset_per_shard[4])]
    assert (copy / "shard.00004.mds").stat().st_size == 1000


def test_hashes_are_checked_where_whole_shards_come(tmp_path: Path, truth: list[dict[str, Any]]) -> None:
    remote = write_shards(tmp_path / "remote", hashes=["sha1"])
    every = np.ones(NUM_SAMPLES, np.bool_)
    dataset = dataset_of(remote, tmp_path / "a", validate_hash="sha1")
    check(read_epoch(dataset), every, truth)
    with open(remote / "shard.00002.mds", "r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    dataset = dataset_of(remote, tmp_path / "b", validate_hash="sha1")
    with pytest.raises((ValueError, RuntimeError), match=r"Checksum failure: shard\.00002\.mds"):
        read_epoch(dataset)
    assert not (tmp_path / "b" / "shard.00002.mds").exists()
    dataset = dataset_of(remote, tmp_path / "c", validate_hash="md5")
    with pytest.raises((ValueError, RuntimeError), match=r"validate_hash is 'md5', but the index has \['sha1'\]"):
        read_epoch(dataset)


@pytest.mark.parametrize("writer", [MDSWriter, JSONWriter])
def test_local_shards_are_what_their_index_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: type[MDSWriter | JSONWriter]
) -> None:
    """Of the size always, at every use; of the hash where that is asked for, once."""
    with writer(out=str(tmp_path), columns={"id": "int"}, size_limit=400, hashes=["sha1"]) as out:
        for index in range(NUM_SAMPLES):
            out.write({"id": index})
    hashed: list[int] = []
    monkeypatch.setattr(fetching, "get_hash", lambda algorithm, data: hashed.append(1) or get_hash(algorithm, data))
    dataset = PrunedStreamingDataset(local=str(tmp_path), batch_size=4, validate_hash="sha1")
    for _ in range(2):
        assert [sample["id"] for sample in dataset] == list(range(NUM_SAMPLES))
    assert len(hashed) == sum(len(shard.file_pairs) for shard in dataset.shards)
    first = int(dataset.sample_offset_per_shard[1])
    path = tmp_path / dataset.shards[1].file_pairs[0][0].basename
    whole = path.read_bytes()
    damaged = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]

    def read(how: str, validate_hash: str | None) -> list[int]:
        dataset = PrunedStreamingDataset(local=str(tmp_path), batch_size=4, validate_hash=validate_hash)
        seen: list[int] = []
        try:
            if how == "at random":
                seen.append(dataset[first]["id"])
            else:
                seen.extend(sample["id"] for sample in dataset)
        finally:
            assert validate_hash is None or max(seen, default=0) < first  # nothing of the shard
        return seen

    for how in ("an epoch", "at random"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"Checksum failure: {path.name} .*Restore it in '{tmp_path}'"):
            read(how, "sha1")
        assert read(how, None)  # as stock streaming does
        for other in (whole[:-1], whole + b"x"):
            path.write_bytes(other)
            with pytest.raises(ValueError, match=rf"{path} has {len(other)} bytes, its index says {len(whole)}"):
                read(how, None)
        path.write_bytes(whole)


def test_what_a_crash_left_is_repaired(remote: Path, truth: list[dict[str, Any]], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    mask = random_mask(0.4)
    dataset = dataset_of(remote, cache)
    keep_only(dataset, mask)
    read_epoch(dataset)
    del dataset
    names = [f"shard.{index:05d}.mds" for index in range(8)]
    (cache / f"{names[0]}.sparse").write_bytes(bytes((remote / names[0]).stat().st_size))  # nothing was flushed
    os.truncate(cache / f"{names[1]}.present", 50)
    (cache / f"{names[2]}.present").unlink()
    (cache / f"{names[3]}.sparse").unlink()
    (cache / names[4]).write_bytes((remote / names[4]).read_bytes()[:5000])  # a download that was cut off
    (cache / f"{names[5]}.0123456789abcdef.tmp").write_bytes(b"a part")
    (cache / f".{names[6]}.present.0123456789abcdef.tmp").write_bytes(b"a part")
    (cache / "somebody's.tmp").write_bytes(b"not ours")
    (cache / f"{names[5]}.sparse.evicted").write_bytes(b"")
    dataset = dataset_of(remote, cache)
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)
    assert [path.name for path in cache.iterdir() if path.suffix in (".tmp", ".evicted")] == ["somebody's.tmp"]


@pytest.mark.long
@pytest.mark.parametrize(("keep", "trials"), [(0.4, (5,)), (0.4, (0, 1, 2, 9, 14)), (1.0, (0, 1, 2, 3))])
def test_killed_anywhere_and_started_again(
    remote: Path,
    truth: list[dict[str, Any]],
    tmp_path: Path,
    launch: Callable[..., None],
    keep: float,
    trials: tuple[int, ...],
) -> None:
    """Processes that are killed between any two writes, one after the other, leave a cache that is read right."""
    mask, cache = random_mask(keep), tmp_path / "cache"
    np.save(tmp_path / "keep.npy", mask)
    script = Path(__file__).with_name("killed_readers.py")
    launch(script, "writes", remote, cache, tmp_path / "keep.npy", *trials)
    dataset = dataset_of(remote, cache)
    keep_only(dataset, mask)
    check(read_epoch(dataset), mask, truth)


# Object storage --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_ranges_from_s3(s3: Any, remote: Path, truth: list[dict[str, Any]], tmp_path: Path) -> None:
    for path in remote.iterdir():
        s3.upload_file(str(path), "training", f"data/{path.name}")
    for keep, name in ((0.3, "a"), (1.0, "b")):
        dataset = dataset_of("s3://training/data", tmp_path / name)
        mask = random_mask(keep)
        keep_only(dataset, mask)
        check(read_epoch(dataset, workers=2), mask, truth)
        assert bool(list((tmp_path / name).glob("*.sparse"))) == (keep < 1)
    s3.delete_object(Bucket="training", Key="data/shard.00003.mds")
    dataset = dataset_of("s3://training/data", tmp_path / "c")
    with pytest.raises(
        (OSError, RuntimeError), match=r"no such object.*bucket 'training', key 'data/shard\.00003\.mds"
    ):
        read_epoch(dataset)


def test_costs_that_are_none_are_refused(remote: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_gap is -1, expected 0 or more bytes"):
        dataset_of(remote, tmp_path / "cache", min_gap=-1)
