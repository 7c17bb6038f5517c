"""Byte ranges of remote files, retried where that can help."""

import logging
import os
import threading
import time
from random import SystemRandom
from typing import Any, Protocol
from urllib.parse import urlparse

import botocore.retryhandler
import s3transfer.utils
import streaming.base.util
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

__all__ = ["ATTEMPTS", "Source", "TransientError", "source_of"]

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""At a request for each of ``download_retry`` attempts, as boto3 makes at a download for each of streaming's."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds
# Of pauses: the global generator is that of training and of samples. The system's has no state that forks would share.
_random = SystemRandom()
# Streaming's downloads take theirs from there too, and boto3's the names of their temporary files.
for _module in (streaming.base.util, botocore.retryhandler, s3transfer.utils):
    _module.random = _random  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]


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


class LocalSource:
    """Files of a folder, a network mount for one."""

    def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
        """See :class:`Source`."""
        try:
            with open(name, "rb", 0) as file:
                _check_size(name, os.fstat(file.fileno()).st_size, size)
                return os.pread(file.fileno(), end - begin, begin)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"The remote folder has no such file: {name}. Check the dataset's remote path, and that it was written "
                "whole."
            ) from None

    def close(self) -> None:
        """See :class:`Source`."""


class S3Source:
    """Objects of an S3-compatible store, reached as streaming reaches it: boto3's credentials, S3_ENDPOINT_URL.

    Args:
        timeout: seconds to wait for a byte.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._made: Any = None
        self._unsigned = False
        buckets = os.environ.get("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "").split(",")
        self._requester_pays = {name.strip() for name in buckets}

    def _client(self) -> Any:
        with self._lock:  # making a client is not thread-safe, using one is
            if self._made is None:
                from boto3.session import Session  # takes a moment, and most runs read from elsewhere

                # One attempt: boto3's own retries slow all requests down for good where many fail.
                config = Config(read_timeout=self._timeout, retries={"mode": "standard", "total_max_attempts": 1})
                if self._unsigned:
                    config = config.merge(Config(signature_version=UNSIGNED))
                endpoint = os.environ.get("S3_ENDPOINT_URL")
                self._made = Session().client("s3", config=config, endpoint_url=endpoint)
            return self._made

    def _get(self, bucket: str, key: str, begin: int, end: int) -> Any:
        extra = {"RequestPayer": "requester"} if bucket in self._requester_pays else {}
        client = self._client()
        try:
            return client.get_object(Bucket=bucket, Key=key, Range=f"bytes={begin}-{end - 1}", **extra)
        except (ClientError, NoCredentialsError) as error:
            anonymous = isinstance(error, NoCredentialsError) or error.response["Error"]["Code"] == "400"
            if not anonymous or self._unsigned:
                raise
            with self._lock:  # a public bucket
                self._unsigned, self._made = True, None
            return self._get(bucket, key, begin, end)

    def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
        """See :class:`Source`."""
        parsed = urlparse(name)
        bucket, key = parsed.netloc, parsed.path.lstrip("/")
        try:
            response = self._get(bucket, key, begin, end)
            if "ContentRange" not in response:
                raise OSError(
                    f"{name}: the server sends whole objects where ranges are asked for, so shards cannot be read from "
                    "it. Use a store that serves byte ranges, as S3 does."
                )
            _check_size(name, int(response["ContentRange"].rpartition("/")[2]), size)
            return response["Body"].read()
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            code = error.response["Error"]["Code"]
            if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "Throttling"):
                raise TransientError(f"{name}: the server answered {status} {code}") from error
            place = f"bucket {bucket!r}, key {key!r}"
            if status == 404:
                raise FileNotFoundError(
                    f"The object store has no such object ({code}): {place}. Check the dataset's remote path, and "
                    "that its upload was finished."
                ) from error
            if status in (401, 403):
                raise PermissionError(
                    f"The object store refuses access ({status} {code}): {place}. Check the credentials and the "
                    "bucket's policy; for a requester-pays bucket, name it in MOSAICML_STREAMING_AWS_REQUESTER_PAYS."
                ) from error
            raise OSError(f"The object store refused the request ({error}): {place}.") from error
        except BotoCoreError as error:  # no connection, a timeout, a body that ended early
            raise TransientError(f"{name}: {error}") from error

    def close(self) -> None:
        """See :class:`Source`."""
        if self._made is not None:
            self._made.close()


def _check_size(name: str, found: int, size: int) -> None:
    if found != size:
        raise ValueError(
            f"{name} has {found} bytes, its index says {size}: it was changed or not uploaded whole. Upload it again, "
            "or write the index anew."
        )


def source_of(remote: str | None, *, timeout: float) -> Source | None:
    """The source of a stream's remote folder; ``None`` where only whole files can be had.

    Args:
        remote: a path, a URI, or ``None`` if there is no remote.
        timeout: seconds to wait for a byte.
    """
    if remote is None:
        return None
    return {"": LocalSource, "s3": lambda: S3Source(timeout)}.get(urlparse(remote).scheme, lambda: None)()


def read_patiently(source: Source, name: str, begin: int, end: int, *, size: int, attempts: int) -> bytes:
    """Read a range, again and again while that may help, with growing pauses.

    Raises:
        ConnectionError: if it failed ``attempts`` times.
        OSError: as :meth:`Source.read`.
        ValueError: as :meth:`Source.read`.
    """
    if begin == end:
        return b""
    pause = _FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            data = source.read(name, begin, end, size=size)
            if len(data) == end - begin:
                return data
            raise TransientError(f"{name}: {len(data)} of {end - begin} bytes came")
        except TransientError as error:
            if attempt == attempts:
                raise ConnectionError(
                    f"Bytes {begin} to {end} could not be fetched in {attempts} attempts; the last one: {error}. "
                    "Check the store and the network, then resume the run; a larger download_retry is more patient."
                ) from error
            logger.debug("Attempt %d failed: %s", attempt, error)
        time.sleep(pause * _random.uniform(0.5, 1.5))
        pause = min(2 * pause, _LONGEST_PAUSE)
    raise AssertionError("unreachable")
