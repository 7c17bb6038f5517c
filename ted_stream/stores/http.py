"""Web servers, and the stores that are read as those are, with addresses and credentials of their own."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter

from ted_stream.stores.base import CONNECTIONS, TransientError, check_size, refusal, whole_objects

__all__ = ["GoogleAccess", "HTTPStore", "HuggingFaceAccess", "WebAccess"]

_PIECE = 1 << 20  # bytes of a download that are written at a time
_Authorize = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class Access(Protocol):
    """How a store's files are asked for. Thread-safe."""

    advice: str
    """What to check where the store refuses access."""

    @property
    def authorize(self) -> _Authorize | None:
        """Puts the credentials into a request; ``None`` if they are those that requests finds by itself."""
        ...

    def url(self, name: str) -> str:
        """Where a file is asked for, by its URI."""
        ...


class HTTPStore:
    """Files of a server that speaks HTTP and serves byte ranges.

    Args:
        access: made where it is first needed.
        timeout: seconds to wait for a byte.
    """

    def __init__(self, access: Callable[[], Access], timeout: float) -> None:
        self._make_access = access
        self._timeout = timeout
        self._lock = threading.Lock()
        self._made: tuple[requests.Session, Access] | None = None
        self._moved: dict[str, str] = {}  # where a file was found that another server has

    def _connection(self) -> tuple[requests.Session, Access]:
        with self._lock:
            if self._made is None:
                session = requests.Session()
                for scheme in ("http://", "https://"):
                    session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
                session.headers["Accept-Encoding"] = "identity"  # ranges are of the file itself
                self._made = session, self._make_access()
            return self._made

    @contextmanager
    def _get(self, name: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer to a request, its body yet to be read; of any status."""
        session, access = self._connection()
        url = access.url(name)

        def get(where: str, authorize: _Authorize | None) -> requests.Response:
            return session.get(where, headers=headers, auth=authorize, timeout=self._timeout, stream=True)

        try:
            # Hugging Face sends on to addresses that are valid for a while, and counts how often it is asked.
            moved = self._moved.get(name)
            if moved is not None:
                with get(moved, None if session.should_strip_auth(url, moved) else access.authorize) as response:
                    if response.ok:
                        yield response
                        return
                self._moved.pop(name, None)
            with get(url, access.authorize) as response:
                if response.history and response.ok:
                    self._moved[name] = response.url
                yield response
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise TransientError(f"{name}: {_reason(error)}") from error

    def _refusal(self, name: str, response: requests.Response) -> Exception:
        _, access = self._connection()
        return refusal(response.status_code, response.reason, name, access.advice)

    def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
        """See :class:`~ted_stream.stores.Store`."""
        with self._get(name, {"Range": f"bytes={begin}-{end - 1}"}) as response:
            if response.status_code == 200:
                raise whole_objects(name)
            if response.status_code != 206:
                raise self._refusal(name, response)
            check_size(name, int(response.headers["Content-Range"].rpartition("/")[2]), size)
            return response.content

    def exists(self, name: str) -> bool:
        """See :class:`~ted_stream.stores.Store`."""
        # Not HEAD, which not every server answers as it does GET.
        with self._get(name, {"Range": "bytes=0-0"}) as response:
            if response.ok or response.status_code == 416:  # it has no first byte
                return True
            error = self._refusal(name, response)
            if isinstance(error, FileNotFoundError):
                return False
            raise error

    def download(self, name: str, path: str) -> None:
        """Write a whole file to a local path; what fails leaves nothing there. Raises as :meth:`read`."""
        temporary = f"{path}.tmp"
        with self._get(name, {}) as response:
            if not response.ok:
                raise self._refusal(name, response)
            with open(temporary, "wb") as file:
                for piece in response.iter_content(_PIECE):
                    file.write(piece)
                written = file.tell()
            if written != int(response.headers.get("Content-Length", written)):
                raise TransientError(f"{name}: {written} of {response.headers['Content-Length']} bytes came")
        os.replace(temporary, path)

    def close(self) -> None:
        """See :class:`~ted_stream.stores.Store`."""
        if self._made is not None:
            self._made[0].close()


def _reason(error: requests.RequestException) -> object:
    """Why there was no answer, without the address: it may be signed."""
    cause = error.args[0] if error.args else error
    return getattr(cause, "reason", cause)


class WebAccess:
    """Files by their URLs, with a user and password of the URL or of ``~/.netrc``."""

    authorize = None
    advice = "Check the URL, and the server's user and password: in the URL or in ~/.netrc."

    def url(self, name: str) -> str:
        """See :class:`Access`."""
        return name


class HuggingFaceAccess:
    """Files of datasets, ``hf://datasets/owner/name/path``, with huggingface_hub's token."""

    advice = (
        "Check the dataset's name, which Hugging Face does not tell from one that is not yours to read, and the token: "
        "HF_TOKEN, or that of `hf auth login`."
    )

    def __init__(self) -> None:
        from huggingface_hub import get_token

        self._token = get_token()

    def url(self, name: str) -> str:
        """See :class:`Access`."""
        from huggingface_hub import hf_hub_url

        parts = name.split("/", 5)
        if len(parts) != 6 or parts[2] != "datasets":
            raise ValueError(
                f"{name!r} names no file of a dataset on Hugging Face; give hf://datasets/owner/name/path."
            )
        return hf_hub_url(f"{parts[3]}/{parts[4]}", parts[5], repo_type="dataset")

    def authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """See :class:`Access`."""
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class GoogleAccess:
    """Objects of Google Cloud Storage, with Application Default Credentials."""

    advice = "Check the Application Default Credentials (GOOGLE_APPLICATION_CREDENTIALS) and the bucket's policy."

    def __init__(self) -> None:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import Request
        from google.cloud.storage import Client

        try:
            self._credentials, _ = google.auth.default(["https://www.googleapis.com/auth/devstorage.read_only"])
        except DefaultCredentialsError as error:
            raise PermissionError(f"There are no credentials for Google Cloud Storage: {error}") from error
        self._endpoint = Client(credentials=self._credentials).api_endpoint
        self._request = Request()
        self._lock = threading.Lock()  # one token for all threads

    def url(self, name: str) -> str:
        """See :class:`Access`."""
        bucket, _, key = name.removeprefix("gs://").partition("/")
        key = quote(key.lstrip("/"), safe="")
        return f"{self._endpoint}/download/storage/v1/b/{bucket}/o/{key}?alt=media"

    def authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """See :class:`Access`."""
        from google.auth.exceptions import GoogleAuthError, TransportError

        try:
            with self._lock:
                self._credentials.before_request(self._request, request.method, request.url, request.headers)
        except GoogleAuthError as error:
            if error.retryable or isinstance(error, TransportError):
                raise TransientError(f"No token for Google Cloud Storage: {error}") from error
            raise PermissionError(f"No token for Google Cloud Storage: {error}. {self.advice}") from error
        return request
