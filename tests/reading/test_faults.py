"""An object store that fails as real ones do: the epoch is complete and right, or ends in an error that says why."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from boto3.session import Session
from botocore import UNSIGNED
from botocore.exceptions import ClientError, NoCredentialsError
from faulty_s3 import FaultyS3
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset, SkipList
from ted_stream.reading.sources import LocalSource, read_patiently
from ted_stream.stores import TransientError, base
from ted_stream.stores.s3 import S3Store

NUM_SAMPLES = 120


@pytest.fixture
def endpoint(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server with a dataset of samples of 2 to 12 KB in several shards."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "truth"
    settings: dict[str, Any] = {"size_limit": 200_000, "hashes": ["sha1"]}  # by which nothing but samples is asked for
    with MDSWriter(out=str(folder), columns={"id": "int", "x": "bytes"}, **settings) as writer:
        for index in range(NUM_SAMPLES):
            writer.write({"id": index, "x": rng.bytes(int(rng.integers(2_000, 12_000)))})
    for path in folder.iterdir():
        s3.upload_file(str(path), "training", f"data/{path.name}")
    monkeypatch.setattr(base, "_FIRST_PAUSE", 0.01)
    return os.environ["S3_ENDPOINT_URL"]


def dataset_of(tmp_path: Path, keep: float = 0.4, **arguments: Any) -> tuple[PrunedStreamingDataset, list[int]]:
    """A pruned dataset on the server, and what it keeps."""
    dataset = PrunedStreamingDataset(
        remote="s3://training/data",
        local=str(tmp_path / "cache"),
        batch_size=4,
        shuffle=True,
        request_latency=1024,
        min_gap=1024,
        **arguments,
    )
    mask = np.random.default_rng(1).random(NUM_SAMPLES) < keep
    skip_list = SkipList.from_keep_mask(dataset.layout, mask, epoch=0, keep_ratio=keep, method="test", run="test")
    dataset.activate(skip_list, sample_ids=False)
    return dataset, np.flatnonzero(mask).tolist()


def check(samples: list[dict[str, Any]], kept: list[int], tmp_path: Path) -> None:
    truth = StreamingDataset(local=str(tmp_path / "truth"), batch_size=1)
    assert sorted(sample["id"] for sample in samples) == kept
    assert all(sample == truth[sample["id"]] for sample in samples)


def read_epoch(dataset: PrunedStreamingDataset, workers: int) -> list[dict[str, Any]]:
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list)
    return [sample for batch in loader for sample in batch]


@pytest.mark.long
@pytest.mark.parametrize(("keep", "workers"), [(0.4, 0), (0.4, 2), (1.0, 0)])
def test_busy_servers_and_broken_connections(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: float, workers: int
) -> None:
    with FaultyS3(endpoint, seed=1, unavailable=0.3, error=0.05, cut=0.3) as front:
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        dataset, kept = dataset_of(tmp_path, keep)
        check(read_epoch(dataset, workers), kept, tmp_path)
        faults = front.faults()
    assert faults["unavailable"]
    assert faults["cut"]


@pytest.mark.long
def test_bodies_that_stall(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyS3(endpoint, seed=2, stall=0.1) as front:
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        dataset, kept = dataset_of(tmp_path, download_timeout=1)
        check(read_epoch(dataset, 0), kept, tmp_path)
        assert front.faults()["stall"]


@pytest.mark.long
@pytest.mark.parametrize(("status", "message"), [(403, "refuses access"), (404, "no such object")])
@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_what_stays_refused_is_named(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, message: str, keep: float
) -> None:
    with FaultyS3(endpoint, refused={"data/shard.00002.mds": status}) as front:
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        dataset, _ = dataset_of(tmp_path, keep)
        with pytest.raises((OSError, RuntimeError), match=rf"{message}.*'training', key 'data/shard\.00002\.mds'"):
            read_epoch(dataset, 0)
        refused = [request for request in front.requests if request.fault == "refused"]
    assert len(refused) <= 2  # once by the thread that reads ahead, once where the sample is read


@pytest.mark.long
def test_a_worker_killed_in_the_middle_of_a_download(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run dies with its worker; started again on the same cache, it is complete and right."""
    _, kept = dataset_of(tmp_path / "other")
    np.save(tmp_path / "keep.npy", np.isin(np.arange(NUM_SAMPLES), kept))
    script = Path(__file__).with_name("killed_readers.py")
    places = ["s3://training/data", tmp_path / "cache", tmp_path / "keep.npy"]
    with FaultyS3(endpoint, seed=0, stall=0.3) as front:
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        run = subprocess.Popen([sys.executable, script, "workers", *places], stderr=subprocess.PIPE, text=True)
        while not any(request.fault == "stall" and "shard" in request.key for request in front.requests):
            assert run.poll() is None
            time.sleep(0.01)
        # Both workers have begun, and one of them is waiting for bytes.
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        workers = [pid for pid in map(int, children) if b"killed_readers" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(workers[0], signal.SIGKILL)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "DataLoader worker" in errors
    monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
    dataset, kept = dataset_of(tmp_path)
    check(read_epoch(dataset, 2), kept, tmp_path)


@pytest.mark.long
def test_ranks_share_what_is_fetched(endpoint: str, tmp_path: Path, launch: Callable[..., None]) -> None:
    with FaultyS3(endpoint, seed=4, unavailable=0.2) as front:
        launch(Path(__file__).with_name("two_ranks_s3.py"), tmp_path, front.url, ranks=2, launcher="torch")
        asked = [(request.key, request.range) for request in front.requests if request.fault is None]
    read = [np.load(tmp_path / f"rank{rank}.npy").tolist() for rank in range(2)]
    _, kept = dataset_of(tmp_path / "other")
    assert sorted({sample for rank in read for sample in rank}) == kept
    ranges = [request for request in asked if request[1] is not None]
    assert len(ranges) == len(set(ranges))


def test_pauses_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class Busy(LocalSource):
        reads = 0

        def read(self, name: str, begin: int, end: int, *, size: int) -> bytes:
            Busy.reads += 1
            raise TransientError("the server is busy")

    monkeypatch.setattr(base, "time", SimpleNamespace(sleep=pauses.append))
    with pytest.raises(ConnectionError, match=r"in 12 attempts; the last one: the server is busy"):
        read_patiently(Busy(), "shard", 0, 4, size=4, attempts=12)
    assert (Busy.reads, len(pauses)) == (12, 11)
    shares = [pause / min(0.1 * 2**at, 10) for at, pause in enumerate(pauses)]
    assert all(0.5 <= share <= 1.5 for share in shares)
    assert len(set(shares)) == 11  # processes that fail together do not come back together


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (500, "InternalError", TransientError),
        (503, "SlowDown", TransientError),
        (429, "TooManyRequests", TransientError),
        (400, "RequestTimeout", TransientError),
        (400, "Throttling", TransientError),
        (401, "Unauthorized", PermissionError),
        (403, "AccessDenied", PermissionError),
        (404, "NoSuchKey", FileNotFoundError),
        (416, "ends before bytes that it has", ValueError),
    ],
)
def test_what_may_pass_is_told_from_what_stays(status: int, said: str, kind: type[Exception]) -> None:
    source = S3Store(timeout=1)
    answer: Any = {"Error": {"Code": said}, "ResponseMetadata": {"HTTPStatusCode": status}}
    source._made = Mock(get_object=Mock(side_effect=ClientError(answer, "GetObject")))
    with pytest.raises(kind, match=said) as caught:
        source.read("s3://training/data/shard", 0, 4, size=4)
    assert type(caught.value) is kind


@pytest.mark.parametrize("reason", ["no credentials", "400"])
def test_a_public_bucket_is_read_without_a_signature(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """And one whose requester pays with a word that says so."""
    monkeypatch.setenv("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "other, training")
    answer: Any = {"Error": {"Code": "400"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    refused = NoCredentialsError() if reason == "no credentials" else ClientError(answer, "GetObject")
    whole = {"ContentRange": "bytes 1-3/4", "Body": BytesIO(b"234")}
    made = []

    def client(self: Session, name: str, *, config: Any, **arguments: Any) -> Mock:
        made.append(config.signature_version is UNSIGNED)
        return Mock(get_object=Mock(side_effect=[whole if made[-1] and is_public else refused]))

    monkeypatch.setattr(Session, "client", client)
    is_public = True
    source = S3Store(timeout=1)
    assert source.read("s3://training/data/shard", 1, 4, size=4) == b"234"
    assert made == [False, True]
    source._made.get_object.assert_called_once_with(
        Bucket="training", Key="data/shard", Range="bytes=1-3", RequestPayer="requester"
    )
    is_public = False
    with pytest.raises(OSError, match=r"400|credentials"):
        S3Store(timeout=1).read("s3://training/data/shard", 1, 4, size=4)
    assert made[2:] == [False, True]


@pytest.mark.long
@pytest.mark.parametrize("retry", [1, 3])
@pytest.mark.parametrize("keep", [0.4, 1.0], ids=["by ranges", "whole"])
def test_a_request_is_repeated_as_download_retry_says(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: float, retry: int
) -> None:
    monkeypatch.setattr(base, "_LONGEST_PAUSE", 0.01)
    dataset, _ = dataset_of(tmp_path, keep, download_retry=retry)
    with FaultyS3(endpoint, unavailable=1.0, in_a_row=1000) as front:
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        with pytest.raises(ConnectionError, match=rf"in {5 * retry} attempts.*download_retry"):
            dataset[0]
        asked = [(request.key, request.range) for request in front.requests]
    assert {asked.count(request) for request in asked} == {5 * retry}
