"""Work in other processes: results in order, in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """Every item with its result, in the order of the items, which are taken only as fast as workers finish.

    Args:
        function: picklable where there are workers, as are items and results.
        items: what to work on.
        workers: processes; 1 works in this one.

    Yields:
        Pairs of item and result. What the function raises is raised here.

    Raises:
        OSError: if a worker was killed.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    pending: deque[tuple[Item, Future[Result]]] = deque()
    # Spawned, not forked: the parent may hold threads (a progress bar).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > 2 * workers:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process was ended by the system, perhaps for want of memory; use fewer workers, or see what "
                "the system says of it (dmesg)."
            ) from error
        finally:
            for _, future in pending:
                future.cancel()


def _end_with_parent() -> None:
    """Make this worker end when its parent does, however that is killed, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
