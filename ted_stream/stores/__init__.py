"""Object stores and web servers: ranges of files' bytes, and whether there is such a file."""

import os
from collections.abc import Callable
from urllib.parse import urlparse

from ted_stream.stores.base import ATTEMPTS, CONNECTIONS, Source, Store, TransientError, patiently

__all__ = ["ATTEMPTS", "CONNECTIONS", "Source", "Store", "TransientError", "patiently", "store_of"]


def store_of(uri: str, *, timeout: float) -> Store | None:
    """The store that a URI names; ``None`` where only whole files can be had. Nothing is connected yet.

    Args:
        uri: of a file or a folder.
        timeout: seconds to wait for a byte.
    """
    make = _STORES.get(urlparse(uri).scheme)
    return None if make is None else make(timeout)


# What a store needs is imported where it is read from.


def _s3(timeout: float) -> Store:
    from ted_stream.stores.s3 import S3Store

    return S3Store(timeout, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))


def _google(timeout: float) -> Store:
    # Streaming decides in the same way by which interface it comes, and with which credentials.
    if "GCS_KEY" in os.environ and "GCS_SECRET" in os.environ:
        from ted_stream.stores.s3 import S3Store

        return S3Store(
            timeout,
            region_name="auto",
            endpoint_url="https://storage.googleapis.com",
            aws_access_key_id=os.environ["GCS_KEY"],
            aws_secret_access_key=os.environ["GCS_SECRET"],
        )
    from ted_stream.stores.http import GoogleAccess, HTTPStore

    return HTTPStore(GoogleAccess, timeout)


def _azure(timeout: float) -> Store:
    from ted_stream.stores.azure import AzureStore

    return AzureStore(timeout)


def _hugging_face(timeout: float) -> Store:
    from ted_stream.stores.http import HTTPStore, HuggingFaceAccess

    return HTTPStore(HuggingFaceAccess, timeout)


def _web(timeout: float) -> Store:
    from ted_stream.stores.http import HTTPStore, WebAccess

    return HTTPStore(WebAccess, timeout)


_STORES: dict[str, Callable[[float], Store]] = {
    "azure": _azure,
    "azure-dl": _azure,
    "gs": _google,
    "hf": _hugging_face,
    "http": _web,
    "https": _web,
    "s3": _s3,
}
