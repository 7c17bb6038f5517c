"""S3 and what speaks as it does, through boto3."""

import os
import threading
from typing import Any
from urllib.parse import urlparse

from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from ted_stream.stores.base import TransientError, check_size, refusal, whole_objects

__all__ = ["S3Store"]

_ADVICE = (
    "Check the credentials and the bucket's policy; for a requester-pays bucket, name it in "
    "MOSAICML_STREAMING_AWS_REQUESTER_PAYS."
)


class S3Store:
    """Objects of an S3-compatible store, reached as streaming reaches it.

    Args:
        timeout: seconds to wait for a byte.
        client: what boto3's client is made with; its credentials are boto3's where none are given.
    """

    def __init__(self, timeout: float, **client: Any) -> None:
        self._timeout = timeout
        self._settings = client
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
                self._made = Session().client("s3", config=config, **self._settings)
            return self._made

    def _ask(self, operation: str, name: str, **arguments: str) -> Any:
        parsed = urlparse(name)
        bucket, key = parsed.netloc, parsed.path.lstrip("/")
        if bucket in self._requester_pays:
            arguments["RequestPayer"] = "requester"
        client = self._client()
        try:
            return getattr(client, operation)(Bucket=bucket, Key=key, **arguments)
        except (ClientError, NoCredentialsError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else "400"
            if code == "400" and not self._unsigned:  # a public bucket
                with self._lock:
                    self._unsigned, self._made = True, None
                return self._ask(operation, name, **arguments)
            place = f"bucket {bucket!r}, key {key!r}"
            if not isinstance(error, ClientError):
                raise refusal(401, "no credentials", place, _ADVICE) from error
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code in ("SlowDown", "RequestTimeout", "Throttling"):
                raise TransientError(f"{name}: the server answered {status} {code}") from error
            raise refusal(status, code, place, _ADVICE) from error
        except BotoCoreError as error:  # no connection, a timeout
            raise TransientError(f"{name}: {error}") from error

    def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
        """See :class:`~ted_stream.stores.Store`."""
        response = self._ask("get_object", name, Range=f"bytes={begin}-{end - 1}")
        if "ContentRange" not in response:
            raise whole_objects(name)
        check_size(name, int(response["ContentRange"].rpartition("/")[2]), size)
        try:
            return response["Body"].read()
        except BotoCoreError as error:  # a body that ended early, or stalls
            raise TransientError(f"{name}: {error}") from error

    def exists(self, name: str) -> bool:
        """See :class:`~ted_stream.stores.Store`."""
        try:
            self._ask("head_object", name)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """See :class:`~ted_stream.stores.Store`."""
        if self._made is not None:
            self._made.close()
