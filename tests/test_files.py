import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest

from ted_stream import PrunedStreamingDataset, files
from ted_stream.files import exists, is_remote, join, read_bytes, write_bytes


class Elsewhere:
    """A path object that is no pathlib.Path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


@pytest.mark.parametrize("kind", [str, Path, Elsewhere])
def test_local_files_by_text_and_by_path_object(tmp_path: Path, kind: Any) -> None:
    folder = tmp_path / "new" / "folder"
    path = kind(join(kind(str(folder)), "a.bin"))
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert read_bytes(path) == b"two"
    assert os.listdir(folder) == ["a.bin"]
    assert not is_remote(path)


def test_files_on_an_object_store(s3: Any) -> None:
    path = join("s3://training/run/", "a.bin")
    assert path == "s3://training/run/a.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert read_bytes(path) == b"two"
    with pytest.raises(FileNotFoundError, match=r"no file .s3://training/run/b\.bin.; check the URI"):
        read_bytes("s3://training/run/b.bin")


def test_missing_credentials_are_named(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for call in (read_bytes, lambda path: write_bytes(path, b"")):
        with pytest.raises(PermissionError, match=r"no credentials for S3\. Set AWS_ACCESS_KEY_ID"):
            call("s3://training/x")
    with pytest.raises(PermissionError, match=r"no credentials for S3\. Set AWS_ACCESS_KEY_ID"):
        PrunedStreamingDataset(remote="s3://training/x", local=str(tmp_path / "x"), batch_size=1, download_retry=1)


def _refuse_from_now_on(refuses: bool) -> None:
    """Whether the S3 server lets nobody in, whatever the keys."""
    allowed = b"0" if refuses else b"inf"  # requests that need none
    url, header = f"{os.environ['S3_ENDPOINT_URL']}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    with urlopen(Request(url, allowed, header, method="POST")):
        pass


def test_what_a_store_refuses_is_named(s3: Any) -> None:
    write_bytes("s3://training/x", b"one")
    with pytest.raises(FileNotFoundError, match=r"'s3://gone/run/x' cannot be written, since there is no such bucket"):
        write_bytes("s3://gone/run/x", b"")
    _refuse_from_now_on(True)
    try:
        with pytest.raises(PermissionError, match=r"'s3://training/x' may not be read: 403 Forbidden\. Check the cred"):
            read_bytes("s3://training/x")
        with pytest.raises(
            PermissionError, match=r"'s3://training/y' may not be written: 403 Forbidden\. Check the cred"
        ):
            write_bytes("s3://training/y", b"")
    finally:
        _refuse_from_now_on(False)
    assert read_bytes("s3://training/x") == b"one"


class _ToldByResponse(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("cause", "error", "words"),
    [
        (None, FileNotFoundError, "There is no file 's3://training/x'"),
        (_ToldByResponse(404), FileNotFoundError, "There is no file 's3://training/x'"),
        (_ToldByResponse(403), PermissionError, "'s3://training/x' may not be read: status 403"),
        (ConnectionResetError("no network"), ConnectionError, "'s3://training/x' could not be read: no network"),
    ],
    ids=repr,
)
def test_a_client_that_calls_all_of_it_missing(
    cause: Exception | None, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As streaming's clients of several stores do."""

    def download(*_: object) -> None:
        raise FileNotFoundError("Object not found") from cause

    monkeypatch.setattr("ted_stream.stores.downloads.CloudDownloader.direct_download", download)
    with pytest.raises(error, match=words):
        read_bytes("s3://training/x")


def test_what_was_handled_before_is_not_what_a_store_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise RuntimeError("busy")

    monkeypatch.setattr("ted_stream.stores.downloads.CloudDownloader.direct_download", busy)
    try:
        raise _ToldByResponse(404)
    except _ToldByResponse:
        with pytest.raises(RuntimeError, match="busy"):
            read_bytes("s3://training/x")


def test_whether_there_is_a_file(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (str(tmp_path / "run"), "s3://training/run"):
        write_bytes(join(folder, "a.bin"), b"one")
    monkeypatch.setattr(files, "read_bytes", None)  # nothing is read to know
    for folder in (str(tmp_path / "run"), "s3://training/run"):
        assert exists(join(folder, "a.bin"))
        assert not exists(join(folder, "b.bin"))
    assert exists(tmp_path)


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("s3://bucket/x", True),
        ("dbfs:/Volumes/x", True),
        ("azure-dl://x", True),
        ("/s3://x", False),
        ("job:3/ep0007.parquet", False),
        ("runs/12:30/x", False),
        ("x", False),
        (".", False),
    ],
)
def test_what_is_remote(path: str, remote: bool) -> None:
    assert is_remote(path) is remote


@pytest.mark.parametrize("call", [is_remote, read_bytes, lambda p: write_bytes(p, b""), lambda p: join(p, "x")])
@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("", ValueError, r"'', which names no file.*'\.' for the working folder"),
        (None, TypeError, "None, a NoneType; give text or a path object"),
        (3, TypeError, "3, a int; give text"),
        (b"x", TypeError, "b'x', a bytes"),
        (Path("s3://bucket/x"), ValueError, r"s3:/bucket/x.* lost a slash; give a URI as text"),
    ],
)
def test_what_is_no_path(call: Any, path: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(path)


@pytest.mark.parametrize("shape", ["{}", "{}/", "s3://bucket/folder/"])
def test_a_folder_is_no_file(tmp_path: Path, shape: str) -> None:
    path = shape.format(tmp_path)
    for call in (read_bytes, lambda path: write_bytes(path, b"")):
        with pytest.raises(IsADirectoryError, match=r"is a folder where a file was to be (read|written); name a file"):
            call(path)
    assert not os.listdir(tmp_path)
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_a_scheme_that_nothing_uploads_to() -> None:
    with pytest.raises(ValueError, match=r"'file', .* nothing was written; use one of .*gs.*s3.* without a scheme"):
        write_bytes("file:///tmp/x", b"")
    with pytest.raises(ValueError, match=r"'foo://x/y' has the scheme 'foo', .* download from; use one of .*gs.*s3"):
        read_bytes("foo://x/y")
    with pytest.raises(ValueError, match="file:///tmp/x"):
        read_bytes("file:///tmp/x")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file '.*/gone'; check the path"):
        read_bytes(tmp_path / "gone")


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, function, crash)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert read_bytes(path) == b"old"
    assert os.listdir(tmp_path) == ["a"]
