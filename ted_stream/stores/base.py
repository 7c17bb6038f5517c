"""What all stores have, how they fail, and how often they are asked."""

import logging
import time
from collections.abc import Callable
from random import SystemRandom
from typing import Protocol, TypeVar

__all__ = [
    "ATTEMPTS",
    "CONNECTIONS",
    "RANDOM",
    "Source",
    "Store",
    "TransientError",
    "check_size",
    "patiently",
    "refusal",
    "whole_objects",
]

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""At a request for each of ``download_retry`` attempts, as boto3 makes at a download for each of streaming's."""
CONNECTIONS = 10
"""Requests in flight per process, as many as botocore pools connections."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds
RANDOM = SystemRandom()
"""Of pauses: the global generator is that of training and of samples. The system's has no state that forks share."""
_T = TypeVar("_T")


class TransientError(OSError):
    """A request that failed in a way that may pass: the server is busy, slow, or closed the connection."""


class Source(Protocol):
    """Where ranges of bytes come from. Thread-safe; made anew in every process."""

    def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
        """The bytes [begin, end) of a file that has ``size`` bytes.

        Raises:
            TransientError: if it may be tried again.
            FileNotFoundError: if there is no such file.
            PermissionError: if it may not be read.
            ValueError: if the file has another size.
        """
        ...

    def close(self) -> None:
        """Close its connections; nobody reads any more."""
        ...


class Store(Source, Protocol):
    """An object store or a web server; its files go by their URIs."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file; it is not read. Raises as :meth:`read`."""
        ...


def check_size(name: str, found: int, size: int) -> None:
    """Raise a ValueError where a file that should have ``size`` bytes was found to have others."""
    if found != size:
        raise ValueError(
            f"{name} has {found} bytes, its index says {size}: it was changed or not uploaded whole. Upload it again, "
            "or write the index anew."
        )


def refusal(status: int, said: str, place: str, advice: str) -> Exception:
    """The error for an answer that brings nothing.

    Args:
        status: of HTTP.
        said: the store's own word for it, or empty.
        place: where the object was asked for.
        advice: what to check where the store refuses access.
    """
    if status >= 500 or status in (408, 429):
        return TransientError(f"{place}: the server answered {status} {said}".rstrip())
    if status == 404:
        return FileNotFoundError(
            f"The object store has no such object ({said or status}): {place}. Check the dataset's remote path, and "
            "that its upload was finished."
        )
    if status == 416:
        return ValueError(
            f"{place} ends before bytes that it has by its index: it was changed or not uploaded whole. Upload it "
            "again, or write the index anew."
        )
    answer = f"{status} {said}".rstrip()
    if status in (401, 403):
        return PermissionError(f"The object store refuses access ({answer}): {place}. {advice}")
    return OSError(f"The object store refused the request ({answer}): {place}.")


def whole_objects(name: str) -> OSError:
    """The error where a range was asked for, and all of a file is sent."""
    return OSError(
        f"{name}: the server sends whole objects where ranges are asked for, so shards cannot be read from it. Use a "
        "store that serves byte ranges, as S3 does."
    )


def patiently(ask: Callable[[], _T], failed: str, advice: str, *, attempts: int) -> _T:
    """Ask again and again while that may help, with growing pauses.

    Args:
        ask: raises a :class:`TransientError` where it may.
        failed: what could not be done, for the error.
        advice: what to do about it.
        attempts: at most.

    Raises:
        ConnectionError: if it failed ``attempts`` times.
    """
    pause = _FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            return ask()
        except TransientError as error:
            if attempt == attempts:
                raise ConnectionError(f"{failed} in {attempts} attempts; the last one: {error}. {advice}") from error
            logger.debug("Attempt %d failed: %s", attempt, error)
        time.sleep(pause * RANDOM.uniform(0.5, 1.5))
        pause = min(2 * pause, _LONGEST_PAUSE)
    raise AssertionError("unreachable")
