"""The folder of a run: rank 0 writes and reads it for every rank."""

import os
from collections.abc import Callable

from ted_stream.engine.ranks import Ranks
from ted_stream.files import join, read_bytes, write_bytes

__all__ = ["RunFolder", "checked_folder"]


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


class RunFolder:
    """Small files at a local path, or at a URI that streaming can upload to and download from.

    Args:
        location: the folder.
        ranks: that the run has.
    """

    def __init__(self, location: str, ranks: Ranks) -> None:
        self.location = location
        self._ranks = ranks

    def path(self, name: str) -> str:
        """The path or URI of a file."""
        return join(self.location, name)

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
                raise OSError(
                    f"{self.path(name)} could not be written ({type(error).__name__}: {error}), so the run could not "
                    "be resumed from it. Check that the folder can be written, or choose another with folder='…'."
                ) from error

        self._ranks.on_rank_zero(write)

    def read(self, name: str) -> bytes:
        """Read a file that an earlier epoch wrote; collective.

        Raises:
            OSError: if it cannot be read.
        """

        def read() -> bytes:
            try:
                return read_bytes(self.path(name))
            except Exception as error:
                raise OSError(
                    f"{self.path(name)} of this run cannot be read ({type(error).__name__}: {error}). Put the run "
                    "folder back where it was and make sure that it can be read, or start a new run."
                ) from error

        return self._ranks.on_rank_zero(read)
