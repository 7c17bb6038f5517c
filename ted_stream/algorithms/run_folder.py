"""The folder of a run: rank 0 writes and reads it for every rank."""

from ted_stream.algorithms.ranks import on_rank_zero
from ted_stream.reading.storage import join, read_bytes, write_bytes

__all__ = ["RunFolder"]


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
            OSError: if it could not be written.
        """

        def write() -> None:
            try:
                write_bytes(self.path(name), data)
            except Exception as error:
                raise OSError(
                    f"{self.path(name)} could not be written ({type(error).__name__}: {error}), so the run could not "
                    "be resumed from it. Check that the folder can be written, or choose another with folder='…'."
                ) from error

        on_rank_zero(write)

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

        return on_rank_zero(read)
