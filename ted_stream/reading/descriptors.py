"""What is said where a process may not have as many files open as it needs to read."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["naming_the_limit", "probe_descriptors"]

_NEEDED = 24
"""Of a dataset: 12 of its own, and the connections and files of what it fetches; shards kept open are fewer where the
limit is low."""


@contextmanager
def naming_the_limit() -> Iterator[None]:
    """Say of an error of too many open files how many there may be, and how to have more.

    Raises:
        OSError: of the same number, EMFILE.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE or "ulimit" in str(error):  # of another one within this
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise OSError(
            errno.EMFILE,
            f"This process has as many files open as it may, {limit}, and reading a dataset needs more: about "
            f"{_NEEDED} for each, and for each DataLoader worker a few. Raise the limit before the run starts, for "
            "example with `ulimit -n 4096`, or use fewer datasets and workers",
        ) from error


def probe_descriptors() -> None:
    """See whether a dataset can be read before it is made.

    Raises:
        OSError: EMFILE, where too few files can be opened.
    """
    opened: list[int] = []
    try:
        for _ in range(_NEEDED):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)
