"""The folder of a run: written by rank 0, read by every rank."""

import logging

from composer.utils import dist

from ted_stream.reading.storage import join, read_bytes, write_bytes

__all__ = ["RunFolder"]

log = logging.getLogger(__name__)


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
        """Write a file whole or not at all, on rank 0; collective.

        Raises:
            RuntimeError: if it could not be written; on every rank, so that none waits for the others for ever.
        """
        failure: list[str | None] = [None]
        if dist.get_global_rank() == 0:
            try:
                write_bytes(self.path(name), data)
            except Exception as error:
                log.exception("writing to the run folder failed")
                failure = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise RuntimeError(
                f"{self.path(name)} could not be written ({failure[0]}), so the run could not be resumed from it. "
                "Check that the folder can be written, or choose another with folder='…'."
            )

    def read(self, name: str) -> bytes:
        """Read a file that an earlier epoch wrote.

        Raises:
            FileNotFoundError: if it is not there.
        """
        try:
            return read_bytes(self.path(name))
        except Exception as error:
            raise FileNotFoundError(
                f"{self.path(name)} of this run cannot be read ({type(error).__name__}: {error}). Put the run folder "
                "back where it was, or start a new run."
            ) from error
