import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from ted_stream.pipelines.benches.object_server import Link, ObjectServer, Traffic

CONTENT = bytes(range(256)) * 2000
LINK = Link(bytes_per_second=20e6, latency=0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    root = tmp_path_factory.mktemp("root")
    (root / "bucket/folder").mkdir(parents=True)
    (root / "bucket/folder/a file").write_bytes(CONTENT)
    (root / "bucket/empty").touch()
    with ObjectServer(root / "bucket" / "..", LINK) as server:
        yield server


@pytest.fixture
def s3(server: ObjectServer) -> Any:
    return boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id="any", aws_secret_access_key="any", region_name="us-east-1"
    )


def test_whole_objects(s3: Any, server: ObjectServer, tmp_path: Path) -> None:
    before = server.traffic
    s3.download_file("bucket", "folder/a file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.traffic - before == Traffic(requests=2, sent=len(CONTENT))
    assert s3.get_object(Bucket="bucket", Key="empty")["Body"].read() == b""


@pytest.mark.parametrize(
    ("asked", "first", "stop"),
    [("0-0", 0, 1), ("1000-300000", 1000, 300_001), ("511990-", 511_990, 512_000), ("-7", 511_993, 512_000)],
)
def test_ranges(s3: Any, server: ObjectServer, asked: str, first: int, stop: int) -> None:
    before = server.traffic
    answer = s3.get_object(Bucket="bucket", Key="folder/a file", Range=f"bytes={asked}")
    assert answer["Body"].read() == CONTENT[first:stop]
    assert answer["ContentRange"] == f"bytes {first}-{stop - 1}/{len(CONTENT)}"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert server.traffic - before == Traffic(requests=1, sent=stop - first)


@pytest.mark.parametrize("key", ["folder", "folder/another", "../../../../../../etc/hostname"])
def test_what_is_not_there(s3: Any, key: str) -> None:
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.get_object(Bucket="bucket", Key=key)
    with pytest.raises(ClientError, match="404"):
        s3.head_object(Bucket="bucket", Key=key)


def test_what_is_not_answered(s3: Any) -> None:
    with pytest.raises(ClientError, match="InvalidRange"):
        s3.get_object(Bucket="bucket", Key="folder/a file", Range="bytes=512000-")
    with pytest.raises(ClientError, match="MethodNotAllowed"):
        s3.put_object(Bucket="bucket", Key="new", Body=b"1")
    assert s3.head_object(Bucket="bucket", Key="folder/a file")["ContentLength"] == len(CONTENT)


def test_the_link_is_no_faster(s3: Any) -> None:
    start = time.monotonic()
    for _ in range(5):
        s3.get_object(Bucket="bucket", Key="folder/a file")["Body"].read()
    assert time.monotonic() - start >= 5 * (LINK.latency + len(CONTENT) / LINK.bytes_per_second)
    start = time.monotonic()
    for _ in range(5):
        s3.head_object(Bucket="bucket", Key="folder/a file")
    assert time.monotonic() - start >= 5 * LINK.latency
