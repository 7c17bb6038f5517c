"""Folders that appear whole or not at all, and go on after an interruption."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ted_stream.files import write_bytes

__all__ = ["DATASET", "check_free", "differing", "new_folder", "resumable_folder"]

DATASET = "dataset"  # what becomes the folder, in the working folder of `resumable_folder`
IsFinished = Callable[[Path], bool]
"""Whether a folder that is there holds what would be written, so that it may be replaced."""


def check_free(out: str | Path, *, kind: str, is_finished: IsFinished, overwrite: bool = False) -> None:
    """Refuse a place that a dataset cannot be put at.

    Args:
        out: where it goes.
        kind: of what it is, as in "prepared dataset".
        is_finished: tells whether there is such a one.
        overwrite: whether that may be replaced.

    Raises:
        ValueError: ``out`` is the working folder, as an empty path is.
        FileExistsError: ``out`` holds a finished one and ``overwrite`` is off, or holds anything else.
    """
    out = Path(out)
    if out.resolve() == Path.cwd():
        raise ValueError(f"--out is empty, or the working folder; name the folder that the {kind} is to become.")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder that does not exist yet.")
    occupied = out.exists() and any(out.iterdir())
    finished = is_finished(out)
    if occupied and not finished:
        raise FileExistsError(f"{out} holds files that are no {kind}; name another folder.")
    if occupied and not overwrite:
        raise FileExistsError(
            f"{out} holds a finished dataset; pass --overwrite to replace it, or name another folder."
        )


@contextmanager
def new_folder(out: str | Path, *, kind: str, is_finished: IsFinished, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write a dataset into, which becomes ``out`` only when the block ends well.

    The folder is a hidden sibling of ``out``, so that an interrupted run never leaves anything that looks
    finished; it is renamed at the end and removed on failure. Arguments and errors are those of `check_free`.

    Yields:
        The folder to write into.
    """
    out = Path(out).resolve()
    check_free(out, kind=kind, is_finished=is_finished, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        partial.chmod(0o755)
        yield partial
        check_free(out, kind=kind, is_finished=is_finished, overwrite=overwrite)  # it may have been taken since
        _put(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_folder(
    out: str | Path, plan: Mapping[str, Any], *, kind: str, is_finished: IsFinished, overwrite: bool = False
) -> Iterator[Path]:
    """A working folder that outlives an interruption; its folder `DATASET` becomes ``out`` when the block ends well.

    It is a hidden sibling of ``out`` and holds the plan that it was begun with: the same plan goes on with what is
    there, another is refused.

    Args:
        out: where the dataset goes.
        plan: all that decides the dataset's bytes, as JSON values.
        kind: see `check_free`.
        is_finished: see there.
        overwrite: replace a finished dataset, and discard an unfinished one of another plan.

    Yields:
        The working folder, with `DATASET` in it.

    Raises:
        FileExistsError: ``out`` is taken (see `check_free`), is being written by another process at this moment, or
            was begun with another plan.
    """
    out = Path(out).resolve()
    check_free(out, kind=kind, is_finished=is_finished, overwrite=overwrite)
    work = out.parent / f".{out.name}.unfinished"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"another process writes the {kind} {out} at this moment; wait for it.") from error
        file = work / "plan.json"
        earlier = json.loads(file.read_text()) if file.exists() else None
        if earlier is not None and earlier != plan and not overwrite:
            raise FileExistsError(
                f"{work} holds an unfinished {kind} that differs in: {differing(plan, earlier)}. Give what it was "
                "begun with to go on, or pass --overwrite to begin anew."
            )
        if earlier != plan:
            for path in work.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            write_bytes(file, json.dumps(plan).encode())
        (work / DATASET).mkdir(exist_ok=True)
        yield work
        check_free(out, kind=kind, is_finished=is_finished, overwrite=overwrite)  # it may have been taken since
        _put(work / DATASET, out)
        shutil.rmtree(work)


def differing(plan: Mapping[str, Any], earlier: Mapping[str, Any]) -> str:
    """The names by which two plans differ, for a message."""
    return ", ".join(name for name in sorted({*plan, *earlier}) if plan.get(name) != earlier.get(name))


def _put(folder: Path, out: Path) -> None:
    """Rename a folder to ``out``, which is free, empty, or a dataset to replace."""
    if not out.exists() or not any(out.iterdir()):
        folder.rename(out)  # replaces an empty folder
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    out.rename(old / out.name)
    folder.rename(out)
    shutil.rmtree(old)
