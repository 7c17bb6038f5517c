"""The folder of a run: rank 0 writes and reads it for every rank."""

from collections.abc import Callable
from typing import TypeVar

from composer.utils import dist

from ted_stream.reading.storage import join, read_bytes, write_bytes

__all__ = ["RunFolder", "on_rank_zero"]

Result = TypeVar("Result")


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 and give every rank its result; collective.

    Raises:
        Exception: what the function raised, on rank 0.
        RuntimeError: with its message, on the other ranks, so that none waits for rank 0 for ever.
    """
    error: Exception | None = None
    outcome: list[Result | str | None] = [None, None]
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = function()
        except Exception as raised:
            error, outcome[1] = raised, f"{type(raised).__name__}: {raised}"
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise RuntimeError(f"Rank 0 failed: {outcome[1]}")
    return outcome[0]  # pyright: ignore[reportReturnType]


class RunFolder:
    """Small files at a local path, or at a URI that streaming can upload to and download from.

    Args:
        location: the folder.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def path(self, name: str) -> str:
        """The path or URI of a file."""
        return join(self.location, name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; collective.

        Raises:
            RuntimeError: if it could not be written.
        """

        def write() -> None:
            try:
                write_bytes(self.path(name), data)
            except Exception as error:
                raise RuntimeError(
                    f"{self.path(name)} could not be written ({type(error).__name__}: {error}), so the run could not "
                    "be resumed from it. Check that the folder can be written, or choose another with folder='…'."
                ) from error

        on_rank_zero(write)

    def read(self, name: str) -> bytes:
        """Read a file that an earlier epoch wrote; collective.

        Raises:
            RuntimeError: if it cannot be read.
        """

        def read() -> bytes:
            try:
                return read_bytes(self.path(name))
            except Exception as error:
                raise RuntimeError(
                    f"{self.path(name)} of this run cannot be read ({type(error).__name__}: {error}). Put the run "
                    "folder back where it was and make sure that it can be read, or start a new run."
                ) from error

        return on_rank_zero(read)
