"""Byte ranges of remote files, retried where that can help."""

import os
from urllib.parse import urlparse

from ted_stream.stores import Source, TransientError, patiently, store_of
from ted_stream.stores.base import check_size

__all__ = ["LocalSource", "read_patiently", "source_of"]


class LocalSource:
    """Files of a folder, a network mount for one."""

    def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
        """See :class:`~ted_stream.stores.Source`."""
        try:
            with open(name, "rb", 0) as file:
                check_size(name, os.fstat(file.fileno()).st_size, size)
                return os.pread(file.fileno(), end - begin, begin)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"The remote folder has no such file: {name}. Check the dataset's remote path, and that it was written "
                "whole."
            ) from None

    def close(self) -> None:
        """See :class:`~ted_stream.stores.Source`."""


def source_of(remote: str | None, *, timeout: float) -> Source | None:
    """The source of a stream's remote folder; ``None`` where only whole files can be had.

    Args:
        remote: a path, a URI, or ``None`` if there is no remote.
        timeout: seconds to wait for a byte.
    """
    if remote is None:
        return None
    return store_of(remote, timeout=timeout) if urlparse(remote).scheme else LocalSource()


def read_patiently(source: Source, name: str, begin: int, end: int, *, size: int, attempts: int) -> bytes:
    """Read a range, again and again while that may help, with growing pauses.

    Raises:
        ConnectionError: if it failed ``attempts`` times.
        OSError: as :meth:`Source.read`.
        ValueError: as :meth:`Source.read`.
    """
    if begin == end:
        return b""

    def read() -> bytes:
        data = source.read(name, begin, end, size=size)
        if len(data) != end - begin:
            raise TransientError(f"{name}: {len(data)} of {end - begin} bytes came")
        return data

    advice = "Check the store and the network, then resume the run; a larger download_retry is more patient."
    return patiently(read, f"Bytes {begin} to {end} could not be fetched", advice, attempts=attempts)
