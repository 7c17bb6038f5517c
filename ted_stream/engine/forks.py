"""Forks beside a process group's threads, which before Python 3.12 can leave a child that never starts.

Such a child waits in ``os.fork()``, before anything else, for a lock of the interpreter. If another thread of its
parent held it at that moment, nobody ever lets go of it. Gloo's threads take it when they drop a tensor that Python has
dropped before, which happens up to milliseconds after the collective has returned: while workers are started next.
"""

import logging
import mmap
import multiprocessing
import os
import sys
import time
from functools import cache
from pathlib import Path
from threading import Timer
from typing import Any

__all__ = ["watch_forks"]

log = logging.getLogger(__name__)

_PAUSE = 0.005  # seconds; of what is dropped later than a collective's return, 2 ms left nothing on a busy machine
_PATIENCE = 60.0  # seconds
_MOST_PROCESSES = 1 << 22  # Linux gives no higher ids


@cache
def watch_forks() -> None:
    """Pause before forks from now on, so that the threads are done, and name a child that has not started in a minute.

    For processes of :mod:`multiprocessing`, a DataLoader's workers among them. From Python 3.12 on there is nothing to
    watch.
    """
    if sys.version_info < (3, 12) and hasattr(os, "register_at_fork"):
        watch = _ForkWatch()
        os.register_at_fork(before=watch.pause, after_in_parent=watch.begin, after_in_child=watch.note_start)


class _ForkWatch:
    """Knows which of this process's children have come out of ``os.fork()``."""

    def __init__(self) -> None:
        # By process id, when the child that has come out had begun: ids are given again. Shared with all children; only
        # pages that are written to take memory.
        self._started = memoryview(mmap.mmap(-1, 8 * _MOST_PROCESSES)).cast("Q")
        self._unknown = {(child.pid, _begun(child.pid)) for child in multiprocessing.active_children()}
        self._timer: Timer | None = None

    def pause(self) -> None:
        """Let other threads have the interpreter, and a processor."""
        time.sleep(_PAUSE)

    def begin(self) -> None:
        """Look after the children once none has been forked for a while; in the parent."""
        # The timer holds up no fork: Python's own threads take that lock only while no other of them runs.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Timer(_PATIENCE, self._look)
        self._timer.daemon = True
        self._timer.start()

    def note_start(self) -> None:
        """It has; in the child."""
        pid = os.getpid()
        self._started[pid] = _begun(pid) or 1

    def _look(self) -> None:
        # Those of a fork server, or spawned, are no forks of this process.
        forked = [child for child in multiprocessing.active_children() if _is_forked(child)]
        children = {(child.pid, _begun(child.pid)) for child in forked} - self._unknown
        stuck = sorted(pid for pid, begun in children if pid is not None and not self._has_started(pid, begun))
        if stuck:
            log.error(
                "DataLoader worker %s was forked from process %d more than %g s ago and has not started: another "
                "thread (of gloo, say) held a lock of Python's at that moment, and the worker waits for it in "
                "os.fork() for ever, as does all that needs its samples. Kill this run, pass its DataLoaders "
                'multiprocessing_context="forkserver" or take Python 3.12 or later, and resume it.',
                ", ".join(map(str, stuck)),
                os.getpid(),
                _PATIENCE,
            )

    def _has_started(self, pid: int, begun: int | None) -> bool:
        started = self._started[pid]
        return started > 0 and begun in (None, started)


def _begun(pid: int | None) -> int | None:
    """When a process began, in the system's ticks since its start; ``None`` where it has ended, or nothing is told."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _is_forked(child: Any) -> bool:
    return getattr(child._popen, "method", None) == "fork"
