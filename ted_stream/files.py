"""Whole files at a local path or a URI; URIs go through streaming's own up- and downloaders.

Streaming is imported only when a URI is read or written: who touches local files alone never pays for it.
"""

import contextlib
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ted_stream.stores import ATTEMPTS, patiently, store_of

__all__ = ["exists", "is_remote", "join", "read_bytes", "reading", "stays_within", "write_bytes", "writing"]

# A scheme, a colon and a slash: "s3://…", and "dbfs:/Volumes/…" too; not a local "job:3/ep0007.parquet".
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_TIMEOUT = 60.0  # seconds to wait for a byte, as streaming does


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URI (``s3://…``) and not a place in the local file system.

    Raises:
        TypeError: ``path`` is neither text nor a path object.
        ValueError: ``path`` is empty, or a URI made into a path object, which has lost one of its slashes.
    """
    return _URI.match(_text(path)) is not None


def join(folder: str | os.PathLike[str], name: str) -> str:
    """The path or URI of a file in a folder; the errors are those of `is_remote`."""
    return f"{_text(folder).rstrip('/')}/{name}"


def stays_within(name: str) -> bool:
    """Whether a name, put behind a folder, is a place within it: not empty, not absolute, and without ``..``."""
    parts = Path(name).parts
    return bool(parts) and not {"..", "/"} & {*parts}


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: a rename on a local path, one PUT on an object store.

    Args:
        path: A local path, whose missing folders are made, or a URI that streaming can upload to.
        data: The file's contents.

    Raises:
        IsADirectoryError: ``path`` names a folder.
        OSError: A local file cannot be written; what was there before is unchanged.
        FileNotFoundError: A URI's bucket does not exist.
        PermissionError: An object store refuses access, or there are no credentials. Its other errors are its own.
        ValueError: ``path`` is empty, or streaming has no uploader for it.
    """
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """As `write_bytes`, part by part: the file is there once the block has ended well.

    Yields:
        A file to write to, on this machine.
    """
    text = _text(path, "written")
    if not is_remote(text):
        with _writing_locally(Path(text)) as file:
            yield file
        return
    from streaming.base.storage.upload import UPLOADERS, CloudUploader

    _check_scheme(text, UPLOADERS, "upload to, so nothing was written")
    folder, _, name = text.rpartition("/")
    no_bucket = f"{text!r} cannot be written, since there is no such bucket; check the URI, or make the bucket."
    with tempfile.TemporaryDirectory() as scratch:
        with _saying_what_is_refused(text, "written", missing=no_bucket):
            uploader = CloudUploader.get((scratch, folder))  # wants the folder empty
        with (Path(scratch) / name).open("xb") as file:
            yield file
        with _saying_what_is_refused(text, "written", missing=no_bucket):
            uploader.upload_file(name)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The contents of a file at a local path, or at a URI that streaming can download from.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: ``path`` names a folder.
        PermissionError: An object store refuses access, or there are no credentials. Its other errors are its own.
        ValueError: ``path`` is empty, or streaming has no downloader for it.
    """
    with reading(path) as file:
        return file.read()


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file as on this machine, one at a URI downloaded for as long as the block takes; errors as of `read_bytes`."""
    text = _text(path, "read")
    if not is_remote(text):
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(text, "rb"))
            except FileNotFoundError as error:
                told = f"There is no file {text!r}; check the path, or that the run wrote it."
                raise FileNotFoundError(told) from error
            except IsADirectoryError as error:
                raise _is_folder(text, "read") from error
            yield file
        return
    from streaming.base.storage.download import DOWNLOADER_MAPPINGS

    from ted_stream.stores.downloads import CloudDownloader

    _check_scheme(text, DOWNLOADER_MAPPINGS, "download from")
    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, "file")
        no_file = f"There is no file {text!r}; check the URI, or that the run wrote it."
        with _saying_what_is_refused(text, "read", missing=no_file):
            CloudDownloader.direct_download(text, local)
        with open(local, "rb") as file:
            yield file


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a local path, or a file at a URI.

    Where a store cannot tell (`ted_stream.stores.store_of` knows none for its scheme), the file is downloaded to know.

    Raises:
        ConnectionError: The store was asked in vain.
        PermissionError: It does not tell. Other errors are those of `read_bytes`.
    """
    text = _text(path)
    if not is_remote(text):
        return Path(text).exists()
    store = store_of(text, timeout=_TIMEOUT)
    if store is not None:
        with contextlib.closing(store):
            failed = f"Whether there is {text!r} could not be found out"
            return patiently(partial(store.exists, text), failed, "Check the store and the network.", attempts=ATTEMPTS)
    try:
        read_bytes(text)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _saying_what_is_refused(text: str, to_be: str, *, missing: str) -> Iterator[None]:
    """Put an error that says what to do in place of a store's own, where it refuses a URI to be "read" or "written"."""
    from ted_stream.stores.downloads import naming_credentials

    handled = sys.exc_info()[1]
    try:
        with naming_credentials():
            yield
    except Exception as error:
        chain = list(_came_of(error, handled))
        by_status = {status: cause for cause in chain for status in _statuses(cause)}
        # Some of streaming's clients say that a file is missing where they were refused, or reached nobody.
        if refused := by_status.get(401) or by_status.get(403):
            raise PermissionError(
                f"{text!r} may not be {to_be}: {_said(refused)}. Check the credentials, and what the bucket lets them "
                "do."
            ) from error
        if 404 in by_status:
            raise FileNotFoundError(missing) from error
        if isinstance(error, FileNotFoundError):
            unreached = [
                cause for cause in chain if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
            ]
            if unreached:
                raise ConnectionError(f"{text!r} could not be {to_be}: {unreached[-1]}.") from error
            raise FileNotFoundError(missing) from error
        raise


def _came_of(error: BaseException | None, handled: BaseException | None) -> Iterator[BaseException]:
    """A store's error and those that it came of, but not what was handled when the store was asked."""
    while error is not None and error is not handled:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    """In the store's own words, which streaming replaces in boto's errors."""
    response: Any = getattr(error, "response", None)
    told = response.get("Error", {}) if isinstance(response, dict) else {}
    return f"{told['Code']} {told['Message']}" if {"Code", "Message"} <= told.keys() else str(error)


def _statuses(error: BaseException) -> set[Any]:
    """Of HTTP, what a store's error tells; each store's own does so in another way."""
    response: Any = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}  # boto's
    told = [getattr(error, name, None) for name in ("code", "status_code", "status")]
    told += metadata.get("HTTPStatusCode"), getattr(response, "status_code", None)
    return {status for status in told if isinstance(status, int)}


def _text(path: str | os.PathLike[str], to_be: str | None = None) -> str:
    """A path as text, checked; of a file that is ``to_be`` "read" or "written", or of anything."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"a path is {path!r}, a {type(path).__name__}; give text or a path object.")
    if not text:
        raise ValueError("a path is '', which names no file or folder; give one, '.' for the working folder.")
    if text is not path and _URI.match(text):
        raise ValueError(
            f"{path!r} is a path object, which is local, but reads like a URI that lost a slash; give a URI as text, "
            "or a local path from its root."
        )
    if to_be is not None and text.endswith("/"):
        raise _is_folder(text, to_be)
    return text


def _check_scheme(text: str, known: Iterable[str], does: str) -> None:
    """Refuse a URI for which streaming has no client, which it does not ``does``."""
    scheme = text.partition(":")[0]
    if scheme not in known:
        names = ", ".join(sorted(name for name in known if name.isidentifier()))
        raise ValueError(
            f"{text!r} has the scheme {scheme!r}, which streaming cannot {does}; use one of {names}, or a local path "
            "without a scheme."
        )


def _is_folder(text: str, to_be: str) -> IsADirectoryError:
    return IsADirectoryError(f"{text!r} is a folder where a file was to be {to_be}; name a file in it.")


@contextlib.contextmanager
def _writing_locally(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name in the same folder, then flushed to disk and renamed."""
    if path.is_dir():
        raise _is_folder(str(path), "written")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
