from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError, ReadTimeoutError
from faulty_s3 import FaultyS3

CONTENT = bytes(range(256)) * 400
KEYS = [f"folder/object {number}" for number in range(40)]


@pytest.fixture
def stored(s3: Any) -> str:
    """The endpoint of a server that holds the keys."""
    for key in KEYS:
        s3.put_object(Bucket="training", Key=key, Body=CONTENT)
    return s3.meta.endpoint_url


def client(front: FaultyS3, *, attempts: int = 1, timeout: float = 10) -> Any:
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"}, read_timeout=timeout)
    return boto3.client("s3", endpoint_url=front.url, config=config)


def read(s3: Any, key: str, asked: str | None = None) -> bytes:
    ranged = {} if asked is None else {"Range": asked}
    return s3.get_object(Bucket="training", Key=key, **ranged)["Body"].read()


def test_without_faults_all_passes(stored: str) -> None:
    with FaultyS3(stored) as front:
        s3 = client(front)
        assert read(s3, KEYS[0]) == CONTENT
        assert read(s3, KEYS[1], "bytes=100-299") == CONTENT[100:300]
        assert s3.head_object(Bucket="training", Key=KEYS[2])["ContentLength"] == len(CONTENT)
        s3.put_object(Bucket="training", Key="new", Body=b"1234")
        assert read(s3, "new") == b"1234"
    assert front.faults() == {None: 5}
    assert [(request.method, request.key, request.range) for request in front.requests[:3]] == [
        ("GET", KEYS[0], None),
        ("GET", KEYS[1], "bytes=100-299"),
        ("HEAD", KEYS[2], None),
    ]
    assert [(request.status, request.sent) for request in front.requests[:3]] == [
        (200, len(CONTENT)),
        (206, 200),
        (200, 0),
    ]


@pytest.mark.parametrize(
    ("shares", "status", "code"),
    [({"unavailable": 1.0}, 503, "SlowDown"), ({"error": 1.0}, 500, "InternalError")],
)
def test_errors(stored: str, shares: dict[str, Any], status: int, code: str) -> None:
    with FaultyS3(stored, **shares) as front:
        with pytest.raises(ClientError) as caught:
            read(client(front), KEYS[0])
        assert caught.value.response["Error"]["Code"] == code
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        with pytest.raises(ClientError, match=str(status)):
            client(front).head_object(Bucket="training", Key=KEYS[0])
    assert [request.status for request in front.requests] == [status, status]
    assert front.faults() == dict.fromkeys(shares, 2)


def test_cut_bodies(stored: str) -> None:
    with FaultyS3(stored, cut=1.0) as front:
        s3 = client(front)
        with pytest.raises(HTTPClientError):
            read(s3, KEYS[0])
        with pytest.raises(ConnectionClosedError):
            s3.head_object(Bucket="training", Key=KEYS[0])
    body, head = front.requests
    assert (body.status, head.status) == (200, 0)
    assert body.sent < len(CONTENT)


def test_stalled_bodies(stored: str) -> None:
    with FaultyS3(stored, stall=1.0) as front, pytest.raises(ReadTimeoutError):
        read(client(front, timeout=0.2), KEYS[0])
    (request,) = front.requests
    assert (request.fault, request.status) == ("stall", 200)
    assert request.sent < len(CONTENT)


def test_refused_keys(stored: str) -> None:
    with FaultyS3(stored, refused={KEYS[0]: 403, KEYS[1]: 404}) as front:
        s3 = client(front)
        for key, code in zip(KEYS, ("AccessDenied", "NoSuchKey"), strict=False):
            with pytest.raises(ClientError, match=code):
                read(s3, key)
        assert read(s3, KEYS[2]) == CONTENT
    assert [request.status for request in front.requests] == [403, 404, 200]


@pytest.mark.long
def test_the_seed_alone_decides_and_faults_in_a_row_are_bounded(stored: str) -> None:
    def faults(seed: int, keys: list[str]) -> dict[str, list[str | None]]:
        with FaultyS3(stored, seed=seed, unavailable=0.4, cut=0.3, in_a_row=2) as front:
            s3 = client(front)
            for key in keys:
                for _ in range(3):
                    try:
                        read(s3, key)
                    except (ClientError, HTTPClientError):
                        continue
                    break
                else:
                    pytest.fail(f"{key} failed three times in a row")
        return {key: [request.fault for request in front.requests if request.key == key] for key in keys}

    first = faults(0, KEYS)
    assert faults(0, KEYS[::-1]) == first
    assert faults(1, KEYS) != first
    assert {len(faults) for faults in first.values()} == {1, 2, 3}
    drawn = [fault for faults in first.values() for fault in faults[:1]]
    assert 8 <= drawn.count("unavailable") <= 24
    assert 4 <= drawn.count("cut") <= 20
