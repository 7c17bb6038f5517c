"""What belongs to one process is made anew in every other one, whether it was forked or was sent a pickled dataset."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from weakref import WeakValueDictionary, finalize

from filelock import FileLock
from streaming.base.stream import Stream

from ted_stream.stores.downloads import CloudDownloader

__all__ = ["FolderOwner", "ProcessLock", "renew_after_fork", "renewed_downloader"]


class _Renewable(Protocol):
    def _renew(self) -> None:
        """Replace what belongs to the parent; called in a forked process, before anything else runs there."""
        ...


_living: WeakValueDictionary[int, _Renewable] = WeakValueDictionary()  # by id: a dataset need not be hashable


def renew_after_fork(item: _Renewable) -> None:
    """Call ``item._renew()`` in every process that is forked from this one, for as long as the item lives there."""
    _living[id(item)] = item


def _renew_all() -> None:
    for item in list(_living.values()):
        item._renew()


os.register_at_fork(after_in_child=_renew_all)


class ProcessLock:
    """A lock between processes, usable in every process that it comes to.

    A FileLock refuses to work in a process that was forked from the one that made it, and cannot be pickled.

    Args:
        path: of the lock file.
    """

    acquire: Callable[[], object]
    release: Callable[[], object]

    def __init__(self, path: str) -> None:
        self._path = path
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        """Lock with a FileLock of this process."""
        # Made at once and not when first used, or two threads could make two, and release what they do not hold.
        lock = FileLock(self._path)
        self.acquire, self.release = lock.acquire, lock.release

    def __reduce__(self) -> Any:
        return ProcessLock, (self._path,)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def renewed_downloader(stream: Stream) -> CloudDownloader:
    """A stream's downloader without the connection that it may have; one of somebody's own class stays as it is."""
    # Not clean_up(): it may close a connection that the parent goes on to use.
    fresh = CloudDownloader.get(stream.remote)
    return fresh if type(fresh) is type(stream._downloader) else stream._downloader


class FolderOwner:
    """Removes a folder when the last dataset of this process that holds it is gone: one, or a copy of it."""

    def __init__(self, folder: Path) -> None:
        finalize(self, _remove, folder, os.getpid())

    def __deepcopy__(self, memo: dict[int, Any]) -> "FolderOwner":
        return self

    def __reduce__(self) -> Any:
        return type(None), ()  # in another process nobody owns it


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked worker must not take the folder away from its parent
        shutil.rmtree(folder, ignore_errors=True)
