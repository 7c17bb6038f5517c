"""Several jobs on one node: every dataset gets shared memory of its own, and what a killed job left is removed.

Streaming takes the lowest number that is free for the names of what a dataset shares. It looks without a lock, so that
jobs which start together take the same one, and a killed job's memory and lock files are taken for those of a living
one. Here a number is drawn, so none is ever used twice, and every process that uses it holds a shared ``flock`` on a
file of that name: the system ends it with the process, however that ends. What nobody holds any more is removed when
the next dataset is made, or when the last of its processes ends.

A process that has dropped all datasets of a number closes the file, and what it had mapped, so that it holds nothing of
them but the names: those it gives back when it ends, as streaming does, and until then a file `number.pid` says so. Not
before: a dataset that was pickled for a process which has yet to start is held by nobody, and finds its memory by name.
"""

import atexit
import fcntl
import itertools
import json
import os
import secrets
import shutil
import time
from _posixshmem import shm_unlink  # pyright: ignore[reportMissingImports]
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from weakref import WeakValueDictionary, finalize

import streaming.base.dataset
import streaming.base.shared.prefix
import torch.distributed as dist
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHM_TO_CLEAN, TICK
from streaming.base.shared import SharedMemory
from streaming.base.shared import get_shm_prefix as stock_get_shm_prefix
from streaming.base.shared.prefix import (
    _check_and_find_retrying,
    _check_self,
    _get_path,
    _pack_locals,
    _unpack_locals,
)
from streaming.base.world import World

__all__ = ["Use", "get_shm_prefix", "is_alive", "node_folder", "only_mapped"]

# Streaming counts up from 0, and cleans up below a million: what it does there, it does to its own memory alone. Names
# have room for ten digits (on macOS, 31 characters).
_FIRST, _NUMBERS = 10**6, 10**9
_ORPHANS = 60.0  # seconds that the workers of a killed process are waited for; they look for it every 5
_SHARED_MEMORY = Path("/dev/shm")

_held: dict[int, int] = {}  # by number: the descriptor whose lock says that this process uses it
_calls = itertools.count()


def node_folder(root: str | Path, prefix: int) -> Path:
    """The folder of what every process of the node must know of a dataset.

    Args:
        root: where streaming has the dataset's lock files.
        prefix: the dataset's number.
    """
    return Path(root) / _get_path(prefix, "ted_stream")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False  # it was killed in the middle of its work
    except PermissionError:
        pass
    try:  # the parent of one that it ended may not have waited for it yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def get_shm_prefix(
    streams_local: list[str], streams_remote: list[str | None], world: World, retry: int = 100
) -> tuple[int, SharedMemory]:
    """Take, or on the node's other ranks learn, a number for the names of what a dataset shares.

    In place of streaming's function of that name, for every StreamingDataset of a process that has imported
    :mod:`ted_stream.reading`. No rank waits for another while it holds a lock.

    Args:
        streams_local: local folder of each stream.
        streams_remote: remote folder of each stream.
        world: this process among the others.
        retry: how many ticks a living dataset that uses one of the folders is waited for.

    Returns:
        The number, and the shared memory that lists the local folders.

    Raises:
        ValueError: if a living dataset uses one of the local folders, and ours has a remote.
    """
    is_alone = world.workers_per_node == 1
    if not is_alone and not (dist.is_available() and dist.is_initialized()):
        return stock_get_shm_prefix(streams_local, streams_remote, world, retry)
    _check_self(streams_local)
    if is_alone:
        return _register(streams_local, streams_remote, retry)
    # Through the store, which needs no device: collectives would, and the ranks may not have chosen theirs yet.
    store = dist.distributed_c10d._get_default_store()
    key = f"ted_stream/prefix/{next(_calls)}/{world.node}"
    if world.is_local_leader:
        try:
            prefix, memory = _register(streams_local, streams_remote, retry)
        except BaseException as error:
            store.set(key, json.dumps(str(error) or repr(error)))
            raise
        store.set(key, json.dumps(prefix))
        return prefix, memory
    prefix = json.loads(store.get(key))
    if isinstance(prefix, str):
        raise ValueError(prefix)
    _hold(prefix)
    try:
        memory = SharedMemory(_get_path(prefix, LOCALS), False)
    except FileNotFoundError:
        raise RuntimeError(f"Rank {world.rank}: the node's first rank ended while it made its dataset.") from None
    theirs, _ = _unpack_locals(bytes(memory.buf))
    if theirs != streams_local:
        raise RuntimeError(
            f"Rank {world.rank} makes a dataset with the local folders {streams_local}, the node's first rank one "
            f"with {theirs}. Give all ranks the same."
        )
    return prefix, memory


class Use:
    """This process's use of a number: it ends with the last dataset here that has it, one or a copy of it.

    Args:
        prefix: the number.
        made: what streaming would keep mapped until the process ends.
    """

    def __init__(self, prefix: int, made: Iterable[SharedMemory] = ()) -> None:
        self._prefix = prefix
        _uses[prefix] = self
        _hold(prefix)
        finalize(self, _end, prefix, list(made), os.getpid()).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Use":
        return self

    def __reduce__(self) -> Any:
        return _use_of, (self._prefix,)


_uses: WeakValueDictionary[int, Use] = WeakValueDictionary()  # by number
_ended: set[int] = set()  # numbers whose names this process has yet to give back


def _use_of(prefix: int) -> Use:
    return _uses.get(prefix) or Use(prefix)


def _end(prefix: int, made: list[SharedMemory], pid: int) -> None:
    """Close what a process has of a number; without waiting for any lock, since garbage is collected at any moment."""
    for memory in made:
        with suppress(BufferError):  # somebody has an array of it
            memory.shm.close()
    if made and os.getpid() == pid:  # by a descriptor of those, which may be the last that this process may have
        _ended.add(prefix)
        (_folder() / f"{prefix}.{pid}").touch()
    if prefix in _held:
        os.close(_held.pop(prefix))


def only_mapped(memory: SharedMemory) -> None:
    """Close the descriptor of shared memory, which its map has no use for."""
    shm: Any = memory.shm
    if shm._fd >= 0:
        os.close(shm._fd)
        shm._fd = -1  # what says so to its own close()


def _hold(prefix: int) -> None:
    """Say that this process uses what has this number.

    Forked processes say so by themselves; one that was sent a pickled dataset must.
    """
    if prefix not in _held:
        with suppress(FileNotFoundError):  # made by streaming alone, or its job is gone
            _held[prefix] = _locked(_folder() / str(prefix), os.O_RDWR)


def _register(streams_local: list[str], streams_remote: list[str | None], retry: int) -> tuple[int, SharedMemory]:
    ours = {local for local, remote in zip(streams_local, streams_remote, strict=True) if remote is not None}
    if ours:  # jobs without this module, too
        with _closing_what_is_looked_at():
            _check_and_find_retrying(streams_local, streams_remote, LOCALS, retry)
    start, attempt = time.monotonic(), 0
    while True:
        with _one_at_a_time():
            others = [(pid, theirs) for pid, theirs in _sweep() if ours.intersection(theirs)]
            if not others:
                return _claim(streams_local)
        pid, theirs = others[0]
        # The workers of a killed process may still write to its folders; they notice, and end.
        is_late = attempt >= retry if is_alive(pid) else time.monotonic() - start > _ORPHANS
        if is_late:
            raise ValueError(
                f"Reused local directory: {streams_local} vs {theirs}. Provide a different one: a dataset of process "
                f"{pid} is in use, and two that download to one folder would spoil each other's files."
            )
        time.sleep(TICK)
        attempt += 1


@contextmanager
def _closing_what_is_looked_at() -> Iterator[None]:
    """Streaming's look at other jobs keeps what it sees of each of them open until this process ends."""
    prefixes: Any = streaming.base.shared.prefix
    seen: list[SharedMemory] = []

    def look(name: str, create: bool) -> SharedMemory:
        seen.append(SharedMemory(name, create, auto_cleanup=False))
        return seen[-1]

    prefixes.SharedMemory = look
    try:
        yield
    finally:
        prefixes.SharedMemory = SharedMemory
        for memory in seen:
            memory.cleanup()


def _claim(streams_local: list[str]) -> tuple[int, SharedMemory]:
    prefix, path, descriptor = _drawn()
    try:
        os.write(descriptor, json.dumps({"pid": os.getpid(), "root": gettempdir()}).encode())
        data = _pack_locals(streams_local, prefix)
        memory = SharedMemory(_get_path(prefix, LOCALS), True, len(data))
    except BaseException:
        path.unlink()
        os.close(descriptor)
        raise
    memory.buf[: len(data)] = data
    _held[prefix] = descriptor
    return prefix, memory


def _drawn() -> tuple[int, Path, int]:
    """A number that is not in use, its file and the descriptor that holds that."""
    while True:
        prefix = _FIRST + secrets.randbelow(_NUMBERS)
        path = _folder() / str(prefix)
        with suppress(FileExistsError):
            return prefix, path, _locked(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _sweep() -> Iterator[tuple[int, list[str]]]:
    """Remove what nobody uses any more, and yield (process, local folders) that others may not use; under the lock."""
    names = [path.name for path in _folder().iterdir()]
    kept = {number for number, _, pid in (name.partition(".") for name in names) if pid and is_alive(int(pid))}
    for path in (_folder() / name for name in names if name.isdigit() and name not in kept):
        try:
            text = path.read_text()
        except FileNotFoundError:  # the system has cleaned up
            continue
        prefix, entry = int(path.name), json.loads(text) if text.endswith("}") else {"pid": 0, "root": gettempdir()}
        if prefix not in _held and _is_left(path):
            _remove(prefix, entry["root"])
        elif not (entry["pid"] == os.getpid() and _has_read(prefix, entry["root"])):
            yield entry["pid"], _locals_of(prefix)


def _has_read(prefix: int, root: str) -> bool:
    """Whether samples were read; streaming lets such a dataset's folders be used again.

    In one process they must be: a notebook's cell that runs again makes its dataset while the former one lives.
    """
    return any((Path(root) / _get_path(prefix, name)).exists() for name in (BARRIER_FILELOCK, CACHE_FILELOCK))


def _locals_of(prefix: int) -> list[str]:
    """The local folders of a dataset, none after it is deleted."""
    try:
        memory = SharedMemory(_get_path(prefix, LOCALS), False, auto_cleanup=False)
    except (FileNotFoundError, ValueError):  # its process ends, or was killed before this had a size
        return []
    try:
        return _unpack_locals(bytes(memory.buf))[0]
    finally:
        memory.cleanup()


def _is_left(path: Path) -> bool:
    """Whether no process holds a file's lock."""
    descriptor = os.open(path, os.O_RDWR)  # not one that is open already: that would change its own lock
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(prefix: int, root: str) -> None:
    for name in SHM_TO_CLEAN:
        with suppress(FileNotFoundError):
            shm_unlink(f"/{_get_path(prefix, name)}")
    for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
        (Path(root) / _get_path(prefix, name)).unlink(missing_ok=True)
    shutil.rmtree(node_folder(root, prefix), ignore_errors=True)
    for path in (_folder() / str(prefix), *_folder().glob(f"{prefix}.*")):
        path.unlink(missing_ok=True)


def _folder() -> Path:
    """This user's files that say which numbers are in use; where the memory is, whatever the temporary folder."""
    root = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(gettempdir())
    folder = root / f"ted_stream_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; have it removed.")
    return folder


def _locked(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    descriptor = os.open(_folder() / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Closing is not enough: another thread may have forked a process that has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _leave() -> None:
    if not _held and not _ended:
        return
    while _ended:
        (_folder() / f"{_ended.pop()}.{os.getpid()}").unlink(missing_ok=True)
    while _held:
        os.close(_held.popitem()[1])
    with suppress(OSError), _one_at_a_time():
        for _ in _sweep():
            pass


atexit.register(_leave)  # before any memory is made, so it runs after all of it is given back
streaming.base.dataset.get_shm_prefix = get_shm_prefix  # pyright: ignore[reportPrivateImportUsage]
