"""Azure's Blob Storage and Data Lake, through Azure's own client."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

from ted_stream.stores.base import TransientError, check_size, refusal

__all__ = ["AzureStore"]

_ADVICE = (
    "Check AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY, or what azure-identity takes instead (`az login`), and "
    "what that may read."
)


class AzureStore:
    """Blobs, reached as streaming reaches them: ``azure://account…/container/blob``, ``azure-dl://container/blob``.

    Args:
        timeout: seconds to wait for a byte.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._made: Any = None

    def _service(self, name: str) -> Any:
        from azure.storage.blob import BlobServiceClient

        with self._lock:
            if self._made is None:
                account = os.environ.get("AZURE_ACCOUNT_NAME") or name.split("://")[1].split(".")[0]
                self._made = BlobServiceClient(
                    f"https://{account}.blob.core.windows.net",
                    credential=os.environ.get("AZURE_ACCOUNT_ACCESS_KEY") or _identity(),
                    read_timeout=self._timeout,
                    retry_total=0,
                )
            return self._made

    @contextmanager
    def _blob(self, name: str) -> Iterator[Any]:
        """A blob's client; what it raises comes as the errors of a store."""
        parsed = urlparse(name)
        container, blob = parsed.netloc, parsed.path.lstrip("/")
        if parsed.scheme == "azure":
            container, _, blob = blob.partition("/")
        try:
            yield self._service(name).get_blob_client(container, blob)
        except HttpResponseError as error:
            if error.status_code is None and isinstance(error, ClientAuthenticationError):  # there is no token
                said = error.message.partition("\n")[0]  # of a page on all that was tried
                raise PermissionError(f"The object store refuses access ({said}): {name}. {_ADVICE}") from error
            if error.status_code is None:  # a body that ended early
                raise TransientError(f"{name}: {error.message}") from error
            code = getattr(error, "error_code", None)  # of an enumeration, if it is known
            raise refusal(error.status_code, str(getattr(code, "value", code or "")), name, _ADVICE) from error
        except AzureError as error:  # no connection, a timeout
            raise TransientError(f"{name}: {error}") from error

    def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
        """See :class:`~ted_stream.stores.Store`."""
        with self._blob(name) as blob:
            response = blob.download_blob(offset=begin, length=end - begin)
            check_size(name, int(response.properties.content_range.rpartition("/")[2]), size)
            return response.readall()

    def exists(self, name: str) -> bool:
        """See :class:`~ted_stream.stores.Store`."""
        with self._blob(name) as blob:
            return blob.exists()

    def close(self) -> None:
        """See :class:`~ted_stream.stores.Store`."""
        if self._made is not None:
            self._made.close()


def _identity() -> Any:
    from azure.identity import AzureCliCredential, ChainedTokenCredential, DefaultAzureCredential

    return ChainedTokenCredential(AzureCliCredential(), DefaultAzureCredential())
