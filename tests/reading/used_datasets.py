"""Datasets that are used in a process before its DataLoaders' workers read them: run by test_forks.py."""

import contextlib
import copy
import functools
import gc
import io
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.client import BaseClient
from filelock import BaseFileLock
from streaming import StreamingDataset
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset, SkipList
from ted_stream.reading.shard_files import _opened, _WholeShard
from ted_stream.reading.sparse import SparseShard

KEEP = 0.4
LIMIT = 60  # seconds of a case
BOUND = (
    BaseClient,
    BaseFileLock,
    SparseShard,
    ThreadPoolExecutor,
    _WholeShard,
    io.IOBase,
    np.memmap,
    socket.socket,
    threading.Event,
    threading.Thread,
    type(threading.Lock()),
    type(threading.RLock()),
)
"""Of one process; what streaming keeps in shared memory is for all."""


def open_dataset(remote: str, folder: Path) -> tuple[PrunedStreamingDataset, list[int]]:
    """A dataset with a list, and the ids that the list keeps."""
    dataset = PrunedStreamingDataset(
        remote=remote, local=str(folder), batch_size=4, shuffle=True, request_latency=64, min_gap=64
    )
    mask = np.random.default_rng(0).random(dataset.num_samples) < KEEP
    skip_list = SkipList.from_keep_mask(dataset.layout, mask, epoch=0, keep_ratio=KEEP, method="test", run="test")
    dataset.activate(skip_list, sample_ids=False)
    return dataset, np.flatnonzero(mask).tolist()


def loader_of(dataset: StreamingDataset, context: str, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=4, collate_fn=list, num_workers=2, multiprocessing_context=context, **arguments
    )


def ids_of(batches: Any) -> list[int]:
    return sorted(sample["id"] for batch in batches for sample in batch)


# What somebody does before the training loop. -------------------------------------------------------------------


def nothing(dataset: PrunedStreamingDataset, context: str) -> Any:
    pass


def samples(dataset: PrunedStreamingDataset, context: str) -> Any:
    return len(dataset), dataset[0], dataset[-1]


def a_few(dataset: PrunedStreamingDataset, context: str) -> Any:
    return list(islice(iter(dataset), 5))


def an_iterator_that_is_kept(dataset: PrunedStreamingDataset, context: str) -> Any:
    iterator = iter(dataset)
    return next(iterator), iterator


def an_epoch(dataset: PrunedStreamingDataset, context: str) -> Any:
    return list(dataset)


def a_loader(dataset: PrunedStreamingDataset, context: str) -> Any:
    list(loader_of(dataset, context))


def a_loader_that_is_dropped(dataset: PrunedStreamingDataset, context: str) -> Any:
    next(iter(loader_of(dataset, context)))


def a_pickled_one(dataset: PrunedStreamingDataset, context: str) -> Any:
    dataset[0]
    return pickle.loads(pickle.dumps(dataset))[0]


def a_copy_that_is_dropped(dataset: PrunedStreamingDataset, context: str) -> Any:
    next(iter(dataset))
    copied = copy.deepcopy(dataset)
    assert copied[0] == dataset[0]


def eviction(dataset: PrunedStreamingDataset, context: str) -> Any:
    dataset[0]
    dataset.evict_shard(0)
    dataset[0]
    dataset.evict_coldest_shard()


def all_of_it(dataset: PrunedStreamingDataset, context: str) -> Any:
    done = [use(dataset, context) for use in (samples, a_loader_that_is_dropped, a_few, eviction)]
    return done, an_iterator_that_is_kept(dataset, context)


USES = (
    nothing,
    samples,
    a_few,
    an_iterator_that_is_kept,
    an_epoch,
    a_loader,
    a_loader_that_is_dropped,
    a_pickled_one,
    a_copy_that_is_dropped,
    eviction,
    all_of_it,
)

# What must hold then. -------------------------------------------------------------------------------------------


def workers_read(use: Callable[..., Any], remote: str, context: str, folder: Path) -> None:
    dataset, expected = open_dataset(remote, folder)
    held = use(dataset, context)
    assert ids_of(loader_of(dataset, context)) == expected
    loader = loader_of(dataset, context, persistent_workers=True)
    for _ in range(2):
        assert ids_of(loader) == expected
    assert dataset[0]["id"] == 0
    del held


def a_copy_reads_on(remote: str, folder: Path) -> None:
    dataset, expected = open_dataset(remote, folder)
    dataset[0]
    copied = copy.deepcopy(dataset)
    del dataset
    gc.collect()
    assert ids_of([copied]) == expected


def two_datasets(remote: str, context: str, folder: Path) -> None:
    pairs = [open_dataset(remote, folder / str(number)) for number in range(2)]
    for dataset, _ in pairs:
        samples(dataset, context)
    batches = list(zip(*(loader_of(dataset, context) for dataset, _ in pairs), strict=True))
    for number, (_, expected) in enumerate(pairs):
        assert ids_of(pair[number] for pair in batches) == expected


def bound_objects(root: Any) -> dict[int, Any]:
    """What belongs to one process among all that an object leads to, by id."""
    found, seen, pending = {}, set(), [root]
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, (type, types.ModuleType, types.FunctionType, SharedMemory)):
            continue
        seen.add(id(item))
        if isinstance(item, BOUND):
            found[id(item)] = item
        pending += [item.func, item.args] if isinstance(item, functools.partial) else gc.get_referents(item)
    return found


def descriptors(folder: Path) -> Iterator[str]:
    """The sockets, and the files of a folder, that this process has open."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            place = os.readlink(f"/proc/self/fd/{number}")
            if place.startswith(("socket:", str(folder))):
                yield place


def nothing_is_taken_along(remote: str, folder: Path) -> None:
    before = set(descriptors(folder))
    dataset, expected = open_dataset(remote, folder)
    held = all_of_it(dataset, "fork"), list(islice(iter(dataset), 20))
    while dataset._iterator._num_exited < 2:  # a thread that is at work when its process forks holds what it works with
        time.sleep(0.01)
    # What is open is the process's; the graph of a dataset leads to a number of it.
    mine, fetcher, ahead = bound_objects([dataset, _opened]), dataset._fetcher, dataset._ahead
    kinds = {type(item) for item in mine.values()}
    assert {kind for kind in BOUND if any(issubclass(k, kind) for k in kinds)} >= {
        BaseClient,
        BaseFileLock,
        ThreadPoolExecutor,
        threading.Event,
    }
    assert {SparseShard, _WholeShard} & kinds
    assert {place.partition(":")[0] for place in set(descriptors(folder)) - before} > {"socket"}  # and files

    sent = pickle.loads(pickle.dumps(dataset))
    assert not mine.keys() & bound_objects(sent).keys()
    del sent

    def in_child() -> None:
        assert not mine.keys() & bound_objects([dataset, _opened]).keys()
        mine.clear()
        gc.collect()
        assert not set(descriptors(folder)) - before, set(descriptors(folder)) - before
        assert (folder_of_node := dataset._node_folder).is_dir()
        assert ids_of([dataset]) == expected
        dataset._folder_owner = None  # as if it were freed here
        gc.collect()
        assert folder_of_node.is_dir()

    call_in_fork("in_child", in_child)
    assert (dataset._fetcher, dataset._ahead) == (fetcher, ahead)  # the parent goes on with what it has
    assert ids_of([dataset]) == expected
    del held


def an_iterator_of_the_parent_is_refused(remote: str, folder: Path) -> None:
    dataset, _ = open_dataset(remote, folder)
    iterator = iter(dataset)
    next(iterator)

    def in_child() -> None:
        with pytest.raises(RuntimeError, match=f"was made in process {os.getppid()}"):
            list(iterator)

    call_in_fork("in_child", in_child)
    assert len(list(iterator)) == len(dataset) - 1


def call_in_fork(name: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a process that is forked from this one."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + LIMIT
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        assert time.monotonic() < deadline, f"{name} hangs"
        time.sleep(0.01)


def main() -> None:
    folder, local, s3 = Path(sys.argv[1]), sys.argv[2], "s3://training"
    if "forkserver" in sys.argv:
        # One server for all workers: it does not outlive a fork.
        multiprocessing.set_forkserver_preload(["ted_stream.reading", "pytest"])
        uses = {use.__name__: use for use in USES}
        for name in sys.argv[4:]:
            print(f"forkserver, {name}", flush=True)
            workers_read(uses[name], f"{local}/plain", "forkserver", folder / name)
        return
    cases: dict[str, tuple[Any, ...]] = {use.__name__: (workers_read, use, f"{local}/plain", "fork") for use in USES}
    cases |= {
        "s3": (workers_read, all_of_it, f"{s3}/plain", "fork"),
        "s3, compressed": (workers_read, samples, f"{s3}/zstd", "fork"),
        "two datasets": (two_datasets, f"{s3}/plain", "fork"),
        "a copy reads on": (a_copy_reads_on, f"{local}/plain"),
        "nothing is taken along": (nothing_is_taken_along, f"{s3}/plain"),
        "an iterator of the parent": (an_iterator_of_the_parent_is_refused, f"{s3}/plain"),
    }
    for name, (function, *arguments) in cases.items():
        print(name, flush=True)
        # Every case in a process that has imported everything, and has no threads.
        call_in_fork(name, checked, folder / f"{name}.done", function, *arguments, folder / name)
        assert (folder / f"{name}.done").exists(), f"{name} failed"


def checked(done: Path, function: Callable[..., None], *arguments: Any) -> None:
    function(*arguments)
    done.touch()


if __name__ == "__main__":
    main()
