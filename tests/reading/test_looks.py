"""What a look at some samples before a run asks of an object store."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_s3 import FaultyS3
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset
from ted_stream.engine import Ranks, read_ids

NUM_SAMPLES = 160  # in shards of 40
SIZE = 5_000


@pytest.fixture
def stored(s3: Any, tmp_path: Path) -> StreamingDataset:
    """What is stored at s3://training/data."""
    rng, folder = np.random.default_rng(0), tmp_path / "truth"
    columns = {"id": "int", "x": "bytes"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=40 * (SIZE + 20), hashes=["sha1"]) as writer:
        for index in range(NUM_SAMPLES):
            writer.write({"id": index, "x": rng.bytes(SIZE)})
    for path in folder.iterdir():
        s3.upload_file(str(path), "training", f"data/{path.name}")
    return StreamingDataset(local=str(folder), batch_size=1)


def loader_of(local: Path, **arguments: Any) -> DataLoader:
    settings = {"request_latency": 1024, "min_gap": 1024, **arguments}
    dataset = PrunedStreamingDataset(remote="s3://training/data", local=str(local), batch_size=8, **settings)
    dataset.activate(None, sample_ids=True)
    return DataLoader(dataset, batch_size=8)


def shards_asked(front: FaultyS3) -> list[tuple[str, int]]:
    """(shard, bytes) of all requests since the last call."""
    asked = [(Path(request.key).name, request.sent) for request in front.requests if request.key.endswith(".mds")]
    front.requests.clear()
    return asked


@pytest.mark.long
def test_samples_that_are_tried_before_a_run_come_alone(
    stored: StreamingDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = (tmp_path / "truth" / "shard.00000.mds").stat().st_size
    with FaultyS3(os.environ["S3_ENDPOINT_URL"]) as front:
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        loader: Any = loader_of(tmp_path / "cache")
        read_ids(loader, Ranks())
        asked = shards_asked(front)
        assert {name for name, _ in asked} == {"shard.00000.mds"}
        assert len(asked) == 1 + 16  # the shard's head, and what is looked at
        assert sum(size for _, size in asked) < 16 * (SIZE + 16) + 1024 < shard / 2
        read_ids(loader, Ranks())  # as another rank of the node does
        assert not shards_asked(front)
        # The epoch fetches what was not looked at.
        samples = list(loader.dataset)
        assert sorted(sample["id"] for sample in samples) == list(range(NUM_SAMPLES))
        assert all(sample["x"] == stored[sample["id"]]["x"] for sample in samples)
        assert sum(size for _, size in shards_asked(front)) < NUM_SAMPLES * (SIZE + 100)


def test_a_shard_that_costs_no_more_comes_whole(
    stored: StreamingDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(tmp_path / "truth" / f"shard.{number:05d}.mds").stat().st_size for number in range(4)]
    with FaultyS3(os.environ["S3_ENDPOINT_URL"]) as front:
        monkeypatch.setenv("S3_ENDPOINT_URL", front.url)
        loader: Any = loader_of(tmp_path / "cache", request_latency="1mb")
        loader.dataset.prepare_samples([0, 30, 120, 130])
        assert shards_asked(front) == [("shard.00000.mds", sizes[0]), ("shard.00003.mds", sizes[3])]
        assert [loader.dataset[index]["x"] for index in (30, 130)] == [stored[index]["x"] for index in (30, 130)]
        assert not shards_asked(front)
        with pytest.raises(IndexError, match="Invalid sample index `160`"):
            loader.dataset.prepare_samples([0, 160])
