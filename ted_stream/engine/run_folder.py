"""The folder of a run: rank 0 writes and reads it for every rank."""

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from warnings import warn
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from ted_stream.engine.ranks import Ranks
from ted_stream.export.run_files import (
    LISTS,
    MANIFEST,
    RUN_FILE,
    SCORES,
    UnreadableRunError,
    list_name,
    read_run,
    run_to_bytes,
)
from ted_stream.files import is_remote, join, read_bytes, stays_within, write_bytes

__all__ = ["FolderInUseError", "RunFolder", "RunLock", "checked_folder", "filled_in"]

_LOCK = ".run.lock"
_ORPHANS = 15.0  # seconds within which the workers of a killed rank 0, who hold its lock too, notice and end
# Where a stopped run and this one agree in these, this one is taken for another attempt at it.
_IDENTITY = ("method", "settings", "seed", "dataset", "samples", "max_epochs")


def checked_folder(folder: object) -> str:
    """A run folder as the user gave it: a local path or a URI, as text.

    Raises:
        TypeError: if it is neither text nor a path.
        ValueError: if it is empty, or names another field than ``{run_name}``.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            f"folder is {folder!r}, a {type(folder).__name__}, but it must be a local path or a URI, for example "
            "'ted_stream_runs/{run_name}' or 's3://bucket/runs/r1'."
        )
    text = os.fspath(folder)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"folder is {text!r}, so the run's files would go to the root of the file system. Pass a folder, for "
            "example 'ted_stream_runs/{run_name}', or '.' for the current one."
        )
    try:
        text.format(run_name="run")
    except (LookupError, AttributeError, ValueError) as error:
        raise ValueError(
            f"folder is {text!r}, which cannot be filled in ({type(error).__name__}: {error}): {{run_name}} is the "
            "only field that is known. Write braces that are part of a name twice, '{{' and '}}'."
        ) from error
    return text


def filled_in(folder: str, run_name: str) -> str:
    """A run's folder, from what :func:`checked_folder` gave, with the run's name where that has ``{run_name}``.

    Raises:
        ValueError: if the name leads out of the folder that it is put into.
    """
    if folder.format(run_name="") != folder.format(run_name="run") and not stays_within(run_name):
        raise ValueError(
            f"run_name is {run_name!r}, which is no folder within that of folder={folder!r}: the run's files would go "
            "elsewhere. Give a name such as 'cifar10-1', and another folder to write elsewhere."
        )
    return folder.format(run_name=run_name)


class FolderInUseError(OSError, RuntimeError):
    """A job that is at work has the run folder."""


class RunLock:
    """Says, while it is held, that a local run folder is in use, and by what; the system ends it with the process.

    Args:
        folder: of the run.
        what: runs there, for those who are kept out.
        lends: whether runs within this one may have the folder too: a recipe's does, for its engine.
    """

    _held: ClassVar["WeakValueDictionary[str, RunLock]"] = WeakValueDictionary()  # of this process, by folder

    def __init__(self, folder: str, *, what: str = "a run that prunes", lends: bool = False) -> None:
        self._folder, self._lends = os.path.abspath(folder), lends
        self._path = Path(self._folder, _LOCK)
        self._lock = FileLock(self._path, thread_local=False)
        self._what = what

    def acquire(self) -> None:
        """Take the folder; again without effect.

        Raises:
            FolderInUseError: if a job that is at work has it.
            OSError: if nothing can be written there.
        """
        other = self._held.get(self._folder)
        if other is self or (other is not None and other._lends and not self._lends):
            return
        if other is not None:
            raise FolderInUseError(
                f"{self._folder} is in use by another run of this process ({other._what}), which has not ended: leave "
                "its loop, or delete what runs it (del pruner), or give this run another folder."
            )
        try:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_ORPHANS)
            self._tell()
        except Timeout as error:
            raise FolderInUseError(
                f"{self._folder} is in use by a job that is at work{self._holder()}, and two runs would write over "
                "each other's files. Wait until it has ended, or give this run another folder."
            ) from error
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._held[self._folder] = self

    def _tell(self) -> None:
        try:
            self._path.write_text(f"{self._what}, process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def _holder(self) -> str:
        try:
            told = self._path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            told = ""  # it has just ended
        return f" ({told})" if told else ""

    def release(self) -> None:
        """Let go; again without effect."""
        if self._held.get(self._folder) is self:
            del self._held[self._folder]
            with suppress(OSError):
                os.truncate(self._path, 0)
            self._lock.release()


class RunFolder:
    """Small files at a local path, or at a URI that streaming can upload to and download from.

    Args:
        location: the folder.
        ranks: that the run has.

    Attributes:
        root: the folder where it was when the run was made, wherever the process goes.
        has_checkpoints: whether the trainer has some of a run in this folder, so that it is not to begin again.
    """

    def __init__(self, location: str, ranks: Ranks) -> None:
        self.location = location
        self.root = location if is_remote(location) else os.path.abspath(location)
        self.ranks = ranks
        self.has_checkpoints = False
        self._job = ""  # says whose the folder is: this object's, once it has claimed it; on rank 0
        self._lock = None if is_remote(location) else RunLock(self.root)

    # Whose it is -------------------------------------------------------------------------------------------------

    def claim(self, make: Callable[[], dict[str, Any]], *, goes_on_at: int | None, overwrite: bool) -> None:
        """Make the folder this run's, before anything is written to it; collective, and again without effect.

        What a killed job left half written is removed, and lists of epochs that are to come again.

        Args:
            make: what ``run.json`` is to hold, of this run.
            goes_on_at: the epochs that a run has behind it that goes on here; ``None`` for one that begins.
            overwrite: whether an earlier run's files may be removed.

        Raises:
            FileExistsError: if it holds another run, and this one begins.
            FolderInUseError: if a job that is at work has it.
        """

        def claim() -> None:
            if self._lock is not None:
                self._lock.acquire()
            try:
                self._clear(make(), goes_on_at, overwrite)
                self._job = self._job or secrets.token_hex(8)
            except BaseException:
                self.release()
                raise

        self.ranks.on_rank_zero(claim)
        self.write_run(make)

    def _clear(self, mine: dict[str, Any], goes_on_at: int | None, overwrite: bool) -> None:
        earlier, is_local = self._earlier(), not is_remote(self.location)
        if earlier is None:
            return
        # A further fit() of the same trainer may begin anew; another trainer's run with the same algorithm may not.
        is_own = bool(self._job) and earlier.get("job") == self._job and earlier.get("run") == mine["run"]
        if goes_on_at is None and not is_own:
            self._refuse(earlier, mine, overwrite, is_local)
        if is_local:
            _remove_after(Path(self.root), goes_on_at or 0)

    def _refuse(self, earlier: dict[str, Any], mine: dict[str, Any], overwrite: bool, is_local: bool) -> None:
        same = all(earlier.get(name) == mine[name] for name in _IDENTITY)
        if same and not earlier.get("finished", True) and not self.has_checkpoints:
            if not _epochs_ended(earlier):
                return
            warn(
                f"{self.location} holds a run of the same settings that was stopped after {_ended(earlier)}, and this "
                "one did not load a checkpoint of it: it begins again, and replaces that run's files, without which "
                "none can be loaded any more.",
                UserWarning,
                stacklevel=6,
            )
        elif not overwrite:
            raise FileExistsError(
                f"{self.location} holds an earlier run, {_described(earlier)}. Resume it from a checkpoint of it, "
                "give this run another folder, or pass overwrite=True (to PruningMixin pruning_overwrite=True, in a "
                "config overwrite=true) to replace it."
            )
        elif not is_local:
            raise FileExistsError(
                f"{self.location} holds an earlier run, {_described(earlier)}, and in an object store nothing is "
                "removed, with overwrite=True neither. Delete it with your store's tool, or give this run another "
                "folder."
            )

    def _earlier(self) -> dict[str, Any] | None:
        """What is known of the run that the folder holds; ``None`` if it holds none."""
        try:
            return read_run(self.root)
        except FileNotFoundError:
            has_lists = not is_remote(self.location) and any(Path(self.root, LISTS).glob("ep*"))
            return {} if has_lists else None
        except UnreadableRunError:
            return {}

    def write_run(self, make: Callable[[], Mapping[str, Any]], *, is_finished: bool = False) -> None:
        """Write ``run.json``; collective.

        Raises:
            OSError: if it could not be written.
        """
        self.write(RUN_FILE, lambda: run_to_bytes({**make(), "finished": is_finished, "job": self._job}))

    def refuse_other_job(self) -> None:
        """Stop if another job has claimed the folder since; collective.

        Raises:
            RuntimeError: saying so.
        """

        def refuse() -> None:
            try:
                found = self._earlier()
            except Exception:  # a store that does not answer now is asked again at the next epoch's end
                return
            if found and found.get("job", self._job) != self._job:
                raise RuntimeError(
                    f"Another job has begun or gone on with a run in {self.location}, and both would write there. Stop "
                    "one of them; the run goes on from a checkpoint."
                )

        self.ranks.on_rank_zero(refuse)

    def release(self) -> None:
        """Let another job have the folder; not collective, and again without effect."""
        if self._lock is not None:
            self._lock.release()

    # Its files ---------------------------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        """The path or URI of a file."""
        return join(self.root, name)

    def write(self, name: str, make: Callable[[], bytes]) -> None:
        """Write a file whole or not at all; collective, and made on rank 0 alone.

        Raises:
            OSError: if it could not be written.
        """

        def write() -> None:
            data = make()
            try:
                write_bytes(self.path(name), data)
            except Exception as error:
                raise _unwritable(self.path(name), error) from error

        self.ranks.on_rank_zero(write)

    def read(self, name: str) -> bytes:
        """Read a file that an earlier epoch wrote; collective.

        Raises:
            OSError: if it cannot be read.
        """
        return self.ranks.on_rank_zero(lambda: self.read_here(name))

    def read_here(self, name: str) -> bytes:
        """The same on one rank, for itself."""
        try:
            return read_bytes(self.path(name))
        except Exception as error:
            raise OSError(
                f"{self.path(name)} of this run cannot be read ({type(error).__name__}: {error}). Put the run folder "
                "back where it was and make sure that it can be read, or start a new run."
            ) from error


def _unwritable(path: str, error: Exception) -> OSError:
    return OSError(
        f"{path} could not be written ({type(error).__name__}: {error}), so the run could not be resumed from it. "
        "Check that the folder can be written, or choose another with folder='…'."
    )


def _remove_after(folder: Path, epochs: int) -> None:
    """Remove what a run wrote after so many epochs, and what a killed job left half written."""
    kept = {folder / list_name(epoch) for epoch in range(epochs)}
    gone = [path for path in (folder / LISTS).glob("ep*.parquet") if path not in kept]
    gone += [folder / MANIFEST, *folder.glob(".*.tmp"), *(folder / LISTS).glob(".*.tmp")]
    if not epochs:
        gone += [folder / SCORES, folder / RUN_FILE]
    for path in gone:
        path.unlink(missing_ok=True)


def _epochs_ended(run: Mapping[str, Any]) -> int:
    return sum(bool(epoch.get("forwarded")) for epoch in run.get("epochs", []))


def _ended(run: Mapping[str, Any]) -> str:
    return f"{_epochs_ended(run)} of {run.get('max_epochs')} epochs"


def _described(run: Mapping[str, Any]) -> str:
    if not run:
        return "of which there is no run.json that can be read"
    return f"{run.get('run')!r}: {run.get('settings')}, {_ended(run)}"
