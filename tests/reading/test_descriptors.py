"""What a dataset has open: no more than streaming's, so many shards at most, and nothing once it is dropped."""

import copy
import gc
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streaming.base.dataset
from faulty_s3 import FaultyS3
from streaming import MDSWriter, StreamingDataset
from streaming.base.shared import get_shm_prefix as stock_get_shm_prefix
from tars import write_shards
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset, SkipList
from ted_stream.reading import shard_files
from ted_stream.reading.tar_index import index_tars

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="macOS has no /proc to tell what is open")

NUM_SAMPLES, PER_SHARD = 120, 10
_others: set[tuple[str, str]] = set()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of samples of 3 KB."""
    folder, rng = tmp_path_factory.mktemp("remote"), np.random.default_rng(0)
    with MDSWriter(out=str(folder), columns={"id": "int", "x": "bytes"}, size_limit=PER_SHARD * 3016 + 1000) as writer:
        for index in range(NUM_SAMPLES):
            writer.write({"id": index, "x": rng.bytes(3000)})
    return folder


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """What this process has open before a test is not counted in it: others close that when they like."""
    _others.update(_descriptors())
    yield
    _others.clear()


@pytest.fixture
def uncollected(remote: Path) -> Iterator[None]:
    """References alone free what is dropped; and what a process opens once, at its first dataset, is open."""
    list(DataLoader(PrunedStreamingDataset(local=str(remote), batch_size=4), batch_size=4, num_workers=1))
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _descriptors() -> set[tuple[str, str]]:
    opened = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            opened.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except FileNotFoundError:  # that of the listing
            continue
    return opened


def descriptors() -> list[str]:
    """What this process has opened since the test began, sorted."""
    return sorted(place for _, place in _descriptors() - _others)


def open_shards() -> list[str]:
    return [place for place in descriptors() if place.endswith((".mds", ".mds.sparse"))]


def sockets() -> int:
    return sum(place.startswith("socket:") for place in descriptors())


def pruned(dataset: PrunedStreamingDataset) -> PrunedStreamingDataset:
    mask = np.arange(dataset.num_samples) % 4 == 0
    skip_list = SkipList.from_keep_mask(dataset.layout, mask, epoch=0, keep_ratio=0.25, method="test", run="test")
    dataset.activate(skip_list, sample_ids=False)
    return dataset


def an_epoch(dataset: Any) -> None:
    assert len(list(dataset)) == len(dataset)


def random_access(dataset: Any) -> None:
    assert [dataset[index]["id"] for index in range(0, NUM_SAMPLES, 5)] == list(range(0, NUM_SAMPLES, 5))


def a_reader(dataset: Any) -> None:
    assert dataset[PER_SHARD]["id"] == PER_SHARD
    assert dataset.shards[1][3]["id"] == PER_SHARD + 3


def an_epoch_that_is_left(dataset: Any) -> None:
    next(iter(dataset))


def workers(dataset: Any) -> None:
    assert sum(map(len, DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=list))) == len(dataset)


def spawned_workers(dataset: Any) -> None:
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context="forkserver")
    assert sum(map(len, loader)) == len(dataset)


def copies(dataset: Any) -> None:
    for copied in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        an_epoch(copied)


USES = [an_epoch, random_access, a_reader, an_epoch_that_is_left, workers, copies]


@pytest.mark.quick("sparse-an_epoch", "sparse-an_epoch_that_is_left", "local-workers")
@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("use", [lambda dataset: None, *USES], ids=["nothing", *(use.__name__ for use in USES)])
@pytest.mark.parametrize("kind", ["local", "cached", "sparse"])
def test_nothing_stays_open_after_the_last_reference(
    remote: Path, tmp_path: Path, kind: str, use: Callable[[Any], None]
) -> None:
    places: dict[str, Any] = (
        {"local": str(remote)} if kind == "local" else {"remote": str(remote), "local": str(tmp_path)}
    )
    before = descriptors()
    dataset = PrunedStreamingDataset(**places, batch_size=4, shuffle=True, request_latency=64, min_gap=64)
    if kind == "sparse":
        pruned(dataset)
    use(dataset)
    del dataset
    deadline = time.monotonic() + 10
    while len(descriptors()) > len(before) and time.monotonic() < deadline:
        time.sleep(0.01)  # threads of an epoch that is left have a look at that now and then
    assert descriptors() == before


@pytest.mark.long
@pytest.mark.usefixtures("uncollected")
def test_nothing_of_tars_and_of_connections_stays_open(
    remote: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in remote.iterdir():
        s3.upload_file(str(path), "training", f"data/{path.name}")
    index_tars(write_shards(tmp_path))
    dataset = PrunedStreamingDataset(local=str(tmp_path), batch_size=4)
    an_epoch(dataset)
    del dataset
    assert not [place for place in descriptors() if place.startswith(str(tmp_path))]
    with FaultyS3(os.environ["S3_ENDPOINT_URL"]) as front:  # keeps connections, as real stores do
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        dataset = PrunedStreamingDataset(remote="s3://training/data", local=str(tmp_path / "cache"), batch_size=4)
        gc.collect()  # streaming's own connection, which fetched the index
        deadline = time.monotonic() + 10
        while sockets() > 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        before = sockets()
        an_epoch(dataset)
        assert sockets() > before
        del dataset
        while sockets() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sockets() <= before


@pytest.mark.usefixtures("uncollected")
def test_no_more_than_streaming_while_it_lives(remote: Path) -> None:
    def opened(cls: type[StreamingDataset]) -> int:
        before = len(descriptors())
        dataset = cls(local=str(remote), batch_size=4)
        during = len(descriptors()) - before
        del dataset
        return during

    assert opened(PrunedStreamingDataset) <= 12  # streaming's number
    assert opened(StreamingDataset) >= 12


@pytest.mark.usefixtures("uncollected")
def test_a_look_at_another_job_leaves_nothing_open(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one of stock streaming, whose numbers begin at 0."""
    with monkeypatch.context() as patch:
        patch.setattr(streaming.base.dataset, "get_shm_prefix", stock_get_shm_prefix)
        stock = StreamingDataset(remote=str(remote), local=str(tmp_path / "stock"), batch_size=4)
    assert stock._shm_prefix_int < 10**6
    before = descriptors()
    dataset = PrunedStreamingDataset(remote=str(remote), local=str(tmp_path / "ours"), batch_size=4)
    del dataset
    assert descriptors() == before


@pytest.mark.usefixtures("uncollected")
def test_a_copy_keeps_what_it_needs(remote: Path) -> None:
    before = descriptors()
    dataset = PrunedStreamingDataset(local=str(remote), batch_size=4)
    copied = copy.deepcopy(dataset)
    random_access(dataset)
    random_access(copied)
    del dataset
    an_epoch(copied)
    assert len(open_shards()) == NUM_SAMPLES // PER_SHARD  # for the next epoch
    del copied
    assert descriptors() == before


def test_the_bound_is_that_of_a_process(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 4)
    datasets = [PrunedStreamingDataset(local=str(remote), batch_size=4) for _ in range(2)]
    rows = np.random.default_rng(0).integers(0, NUM_SAMPLES, 300)
    for row in rows.tolist():
        assert datasets[row % 2][row]["id"] == row
        assert len(open_shards()) <= 4
    assert len(open_shards()) == 4
    # The longest unused is closed first.
    for shard in (0, 1, 2, 3, 0, 4):
        datasets[0][shard * PER_SHARD]
    names = {Path(place).name for place in open_shards()}
    assert names == {f"shard.{number:05}.mds" for number in (0, 2, 3, 4)}
    # An eighth of what the process may have open, where that is less.
    monkeypatch.setattr(resource, "getrlimit", lambda which: (16, resource.RLIM_INFINITY))
    datasets[0][5 * PER_SHARD]
    assert len(open_shards()) == 2
    del datasets[0]
    gc.collect()
    assert not open_shards()


def has_lock() -> bool:
    lock: Any = shard_files._opened._lock
    return lock._is_owned()


class Guarded(OrderedDict[Any, Any]):
    """What a thread may look at, and change, while it has the lock."""

    def __getattribute__(self, name: str) -> Any:
        assert has_lock(), name
        return super().__getattribute__(name)

    def __setitem__(self, key: Any, value: Any) -> None:
        assert has_lock()
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[Any]:
        assert has_lock()
        return super().__iter__()


@pytest.mark.long
def test_samples_are_right_while_other_threads_close_files(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 2)
    monkeypatch.setattr(shard_files._opened, "_shards", Guarded())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    truth = [sample["x"] for sample in StreamingDataset(local=str(remote), batch_size=4)]
    whole = PrunedStreamingDataset(local=str(remote), batch_size=4)
    sparse = pruned(
        PrunedStreamingDataset(remote=str(remote), local=str(tmp_path), batch_size=4, request_latency=64, min_gap=64)
    )
    an_epoch(sparse)
    wrong: list[Any] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for row in rng.integers(0, NUM_SAMPLES // 4, 400).tolist():
                for dataset in (whole, sparse):
                    if dataset[4 * row]["x"] != truth[4 * row]:
                        wrong.append(row)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not wrong
    assert len(open_shards()) <= 2


def ids_and_open_shards(samples: list[dict[str, Any]]) -> tuple[list[int], int]:
    return [sample["id"] for sample in samples], len(open_shards())


def few_open_shards(worker: int) -> None:
    shard_files._OPEN_SHARDS = 2


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_open_their_own_shards(remote: Path, context: str) -> None:
    dataset = PrunedStreamingDataset(local=str(remote), batch_size=4, shuffle=True)
    random_access(dataset)
    mine = len(open_shards())
    assert mine == NUM_SAMPLES // PER_SHARD
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=2,
        collate_fn=ids_and_open_shards,
        worker_init_fn=few_open_shards,
        multiprocessing_context=context,
    )
    batches = list(loader)
    assert sorted(sample for ids, _ in batches for sample in ids) == list(range(NUM_SAMPLES))
    assert max(number for _, number in batches) == 2
    assert len(open_shards()) == mine


@contextmanager
def no_more_than(spare: int) -> Iterator[int]:
    """The limit, where this process may open so many files more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest, opened = max(map(int, os.listdir("/proc/self/fd"))), [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < highest:  # it is numbers that are limited
        opened.append(os.open(os.devnull, os.O_RDONLY))
    most = opened[-1] + 1 + spare
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        yield most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in opened:
            os.close(descriptor)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("cached", [False, True])
def test_a_limit_that_is_too_low_is_named(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Where a dataset is made, and where it is read; and dropping it is quiet."""
    unraised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    places: dict[str, Any] = {"remote": str(remote), "local": str(tmp_path)} if cached else {"local": str(remote)}
    told = r"as many files open as it may, {}, and .* `ulimit -n 4096`"
    for spare in (0, 11, 20):
        with no_more_than(spare) as most, pytest.raises(OSError, match=told.format(most)):
            PrunedStreamingDataset(**places, batch_size=4)
    before = descriptors()
    dataset = PrunedStreamingDataset(**places, batch_size=4)
    with no_more_than(0) as most:
        with pytest.raises(OSError, match=told.format(most)):
            dataset[0]
        del dataset
    assert not unraised
    assert descriptors() == before


ENDS = """
import os, subprocess, sys
from ted_stream import PrunedStreamingDataset
from ted_stream.reading import node_jobs

dataset = PrunedStreamingDataset(local=sys.argv[1], batch_size=4)
list(dataset)
number = str(dataset._shm_prefix_int)
del dataset
sweeps = "from ted_stream.reading import node_jobs\\nwith node_jobs._one_at_a_time(): list(node_jobs._sweep())"
mine = lambda: [name for name in os.listdir("/dev/shm") if number in name]
before = mine()
subprocess.run([sys.executable, "-c", sweeps], check=True)
assert before and mine() == before, (before, mine())
print(number)
"""


@pytest.mark.long
def test_names_are_given_back_at_the_end_of_the_process_that_made_them(remote: Path) -> None:
    """Another job takes none of them away before, of which the end would tell as of a leak."""
    done = subprocess.run([sys.executable, "-c", ENDS, remote], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    (number,) = done.stdout.split()
    assert not [name for name in os.listdir("/dev/shm") if number in name]
    assert not list(Path(f"/dev/shm/ted_stream_{os.getuid()}").glob(f"{number}*"))
