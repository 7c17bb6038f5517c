"""Functions called in fresh processes, so that one measurement leaves nothing behind for the next."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = ["call_in_fresh_process", "peak_memory"]

P = ParamSpec("P")
R = TypeVar("R")


def call_in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a function of a module returns when a process calls it that has imported the libraries and done no more.

    The process is forked from one that imports them once: alone they take ten seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["ted_stream.reading"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_call, function, *args, **kwargs).result()


def _call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    set_start_method(None, force=True)  # the process's own children, such as a loader's workers, start as they would
    try:
        return function(*args, **kwargs)
    finally:
        atexit._run_exitfuncs()  # a forked process ends without; streaming gives its shared memory back there


def peak_memory() -> int:
    """Most bytes that this process has held in memory at a time, shared memory included; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
