"""Small whole files at a local path or a URI, through streaming's own up- and downloaders."""

import os
import tempfile
from pathlib import Path
from urllib.parse import urlparse

from streaming.base.storage.download import CloudDownloader
from streaming.base.storage.upload import CloudUploader

from ted_stream.skip_list.atomic import write_bytes_whole

__all__ = ["join", "read_bytes", "write_bytes"]


def _is_remote(path: str) -> bool:
    return bool(urlparse(path).scheme)


def join(folder: str, name: str) -> str:
    """The path or URI of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def write_bytes(path: str, data: bytes) -> None:
    """Write a file whole or not at all: a rename on a local path, one PUT on an object store.

    Args:
        path: a local path (its folders are made) or a URI that streaming can upload to.
        data: the file's contents.
    """
    folder, _, name = path.rpartition("/")
    if _is_remote(path):
        with tempfile.TemporaryDirectory() as scratch:
            uploader = CloudUploader.get((scratch, folder))  # wants the folder empty
            (Path(scratch) / name).write_bytes(data)
            uploader.upload_file(name)
        return
    write_bytes_whole(Path(path), data)


def read_bytes(path: str) -> bytes:
    """The contents of a file at a local path or a URI that streaming can download from.

    Raises:
        FileNotFoundError: if a local path does not exist; an object store's own error otherwise.
    """
    if not _is_remote(path):
        try:
            return Path(path).read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no file {path!r}; check the path, or that the run wrote it.") from error
    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, "file")
        CloudDownloader.direct_download(path, local)
        return Path(local).read_bytes()
