"""Forks workers beside a process group: run by test_worker_starts.py."""

import ctypes
import json
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from ted_stream.engine import Ranks, forks

RANK, OUT = int(os.environ["RANK"]), Path(sys.argv[2])


def states_made(api: ctypes.PyDLL = ctypes.pythonapi) -> int:
    """How many threads' states this interpreter has made so far; every call makes one."""
    new, number = api.PyThreadState_New, api.PyThreadState_GetID
    new.restype, number.restype, api.PyInterpreterState_Get.restype = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p
    state = ctypes.c_void_p(new(ctypes.c_void_p(api.PyInterpreterState_Get())))
    made = number(state)
    api.PyThreadState_Clear(state)
    api.PyThreadState_Delete(state)
    return made


def settled() -> None:
    """Forks right after exchanges, and counts the states that other threads make from then on.

    A state is made under the lock that a forked child must have.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # so that no thread goes on beside this one
    late, before = [], 0

    def at_fork() -> None:
        nonlocal before
        before = states_made()

    def after_fork() -> None:
        time.sleep(0.03)
        late.append(states_made() - before - 1)

    os.register_at_fork(before=at_fork, after_in_parent=after_fork)  # what comes first here is called last before forks
    dist.init_process_group("gloo")
    communicator = Ranks().communicator
    for _ in range(20):
        communicator.all_reduce_sum(np.arange(1000))
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    (OUT / f"late{RANK}.json").write_text(json.dumps(late))


def stuck() -> None:
    """The second of three workers stays in os.fork(); says which it is, and what was said of it."""
    forked = 0

    def count() -> None:
        nonlocal forked
        forked += 1

    def stay() -> None:
        if forked == 2:
            time.sleep(600)

    os.register_at_fork(before=count, after_in_child=stay)
    forks._PATIENCE = 2.0
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("ted_stream").addHandler(handler)
    dist.init_process_group("gloo")
    Ranks()
    spawned = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))  # has not been forked
    spawned.start()
    batches = iter(DataLoader(TensorDataset(torch.arange(6)), num_workers=3))
    assert next(batches)[0].tolist() == [0]
    end = time.monotonic() + 30
    while not said and time.monotonic() < end:
        time.sleep(0.1)
    pids = [worker.pid for worker in batches._workers]  # pyright: ignore[reportAttributeAccessIssue]
    (OUT / f"stuck{RANK}.json").write_text(json.dumps({"said": said, "pids": pids, "parent": os.getpid()}))
    spawned.kill()
    os._exit(0)  # not waiting for the worker


if __name__ == "__main__":
    {"settled": settled, "stuck": stuck}[sys.argv[1]]()
