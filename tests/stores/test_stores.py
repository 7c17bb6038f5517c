"""Every store, by its own protocol, names and credentials: what is read of it, and how it fails."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from internet import CUT, HUB, REMOTES, Internet
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset, SkipList
from ted_stream.files import exists, read_bytes
from ted_stream.reading.sources import read_patiently
from ted_stream.stores import Store, TransientError, base, store_of

DATA = np.random.default_rng(0).bytes(100_000)
# What a user of the machine that runs the tests may have set.
OTHERS = (
    *("AZURE_ACCOUNT_NAME", "GCS_KEY", "GCS_SECRET", "S3_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"),
    *("ALL_PROXY", "HTTP_PROXY", "http_proxy", "https_proxy", "no_proxy", "AWS_CA_BUNDLE", "HF_HUB_OFFLINE"),
)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with Internet(tmp_path_factory.mktemp("internet")) as internet:
        yield internet


@pytest.fixture(params=REMOTES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def remote(kind: str, net: Internet, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a folder with a file ``a b.bin``, in every store."""
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in net.variables(kind).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(base, "_FIRST_PAUSE", 0.001)
    net.files = {"data/a b.bin": DATA}
    net.requests.clear()
    net.failures.clear()
    net.serves_ranges = True
    return net.remote(kind)


@pytest.fixture
def store(remote: str) -> Iterator[Store]:
    store = store_of(remote, timeout=10)
    assert store is not None
    with closing(store):
        yield store


def test_ranges_are_those_of_the_file(remote: str, store: Store, net: Internet) -> None:
    begins = [0, 1, 50_000, 99_990, *range(0, 60_000, 5_000)]

    def read(begin: int) -> bytes:
        return store.read(f"{remote}/a b.bin", begin, begin + 10, size=len(DATA))

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(read, begins)) == [DATA[begin : begin + 10] for begin in begins]
    assert net.sent() == 10 * len(begins)
    assert read_bytes(f"{remote}/a b.bin") == DATA  # by streaming, with the same name and credentials


def test_a_file_that_is_missing_and_one_that_is_refused(remote: str, store: Store, net: Internet) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such object .*none\.bin.*remote path"):
        store.read(f"{remote}/none.bin", 0, 10, size=10)
    for status in (401, 403):
        net.failures["data/a b.bin"] = [status]
        with pytest.raises(PermissionError, match=rf"refuses access \({status} \w+\): .*a b\.bin.*Check"):
            store.read(f"{remote}/a b.bin", 0, 10, size=len(DATA))


@pytest.mark.parametrize(
    "failure", [500, pytest.param(503, marks=pytest.mark.long), pytest.param(429, marks=pytest.mark.long), CUT]
)
def test_what_may_pass_is_tried_again(remote: str, store: Store, net: Internet, failure: int) -> None:
    name, key = f"{remote}/a b.bin", "data/a b.bin"
    net.failures[key] = 3 * [failure]  # Azure's client asks again by itself where a body ends early
    with pytest.raises(ConnectionError, match=r"5 to 15 .* in 1 attempts; the last one: .*a b\.bin"):
        read_patiently(store, name, 5, 15, size=len(DATA), attempts=1)
    net.failures[key] = [failure, failure]
    assert read_patiently(store, name, 5, 15, size=len(DATA), attempts=3) == DATA[5:15]
    assert not net.failures[key]


@pytest.mark.parametrize("kind", sorted(REMOTES.keys() - {"s3"}))
def test_a_server_that_is_gone(remote: str, store: Store, net: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # where nobody listens
    name = "http://127.0.0.1:1/x" if remote.startswith("http:") else f"{remote}/a b.bin"
    with pytest.raises((TransientError, ConnectionError), match=r"refused|127\.0\.0\.1"):
        read_patiently(store, name, 5, 15, size=len(DATA), attempts=2)


@pytest.mark.parametrize("size", [99_000, 101_000])
def test_a_file_of_another_size_than_its_index_says(remote: str, store: Store, size: int) -> None:
    with pytest.raises(ValueError, match=rf"a b\.bin.* has 100000 bytes, its index says {size}.*Upload it again"):
        store.read(f"{remote}/a b.bin", 0, 10, size=size)
    with pytest.raises(ValueError, match=r"a b\.bin.* ends before bytes that it has by its index.*Upload it again"):
        store.read(f"{remote}/a b.bin", 100_500, 100_510, size=101_000)


@pytest.mark.parametrize("kind", ["s3", "gs", "gs, HMAC", "hf", "http", "https"])
def test_a_server_that_sends_whole_files_is_refused(remote: str, store: Store, net: Internet) -> None:
    net.serves_ranges = False
    with pytest.raises(OSError, match=r"a b\.bin: the server sends whole objects where ranges are asked for"):
        store.read(f"{remote}/a b.bin", 0, 10, size=len(DATA))


def test_whether_there_is_a_file_is_known_without_reading_it(remote: str, net: Internet) -> None:
    net.files["data/empty"] = b""
    net.failures["data/a b.bin"] = [503]
    assert exists(f"{remote}/a b.bin")
    assert exists(f"{remote}/empty")
    assert not exists(f"{remote}/none.bin")
    assert net.sent() <= 1
    net.failures["data/a b.bin"] = [403]
    with pytest.raises(PermissionError, match=r"refuses access.*a b\.bin"):
        exists(f"{remote}/a b.bin")


def test_a_missing_file_is_missing_to_streaming_too(remote: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.bin.*check the URI"):
        read_bytes(f"{remote}/none.bin")


@pytest.mark.parametrize("kind", ["hf"])
def test_hugging_face_is_asked_again_only_where_an_address_has_run_out(
    remote: str, store: Store, net: Internet
) -> None:
    def read() -> int:
        before = sum(request.host == HUB for request in net.requests)
        assert store.read(f"{remote}/a b.bin", 3, 9, size=len(DATA)) == DATA[3:9]
        return sum(request.host == HUB for request in net.requests) - before

    assert [read(), read()] == [1, 0]
    net.signature += 1
    assert [read(), read()] == [1, 0]


@pytest.mark.parametrize("kind", ["gs"])
def test_google_gives_one_token_to_all_threads(remote: str, store: Store, net: Internet) -> None:
    before = net.tokens
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda begin: store.read(f"{remote}/a b.bin", begin, begin + 1, size=len(DATA)), range(20)))
    assert net.tokens - before == 1


@pytest.mark.parametrize("kind", ["gs"])
def test_without_credentials(remote: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(PermissionError, match=r"no credentials for Google Cloud Storage: .*none\.json"):
        store.read(f"{remote}/a b.bin", 0, 1, size=len(DATA))


@pytest.mark.parametrize("name", ["hf://datasets/owner", "hf://models/owner/name/x"])
def test_what_is_no_dataset_of_hugging_face(name: str) -> None:
    with pytest.raises(ValueError, match=r"names no file of a dataset.*give hf://datasets/owner/name/path"):
        exists(name)


@pytest.mark.parametrize("remote", ["oci://bucket@space/x", "sftp://host/x", "dbfs:/Volumes/x", "file:///x", "/x"])
def test_where_only_whole_files_can_be_had(remote: str) -> None:
    assert store_of(remote, timeout=1) is None


# A dataset --------------------------------------------------------------------------------------------------------

NUM_SAMPLES = 80


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """The same samples of 2 to 12 KB, plain and compressed."""
    folder = tmp_path_factory.mktemp("shards")
    for compression in (None, "zstd"):
        rng = np.random.default_rng(1)
        settings: dict[str, Any] = {"size_limit": 170_000, "hashes": ["sha1"], "compression": compression}
        columns = {"id": "int", "x": "bytes"}
        with MDSWriter(out=str(folder / str(compression)), columns=columns, **settings) as writer:
            for index in range(NUM_SAMPLES):
                writer.write({"id": index, "x": rng.bytes(int(rng.integers(2_000, 12_000)))})
    return {compression: folder / str(compression) for compression in (None, "zstd")}


@pytest.mark.quick("gs-zstd")
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_pruned_dataset_reads_what_it_keeps(
    remote: str, net: Internet, shards: dict[str | None, Path], compression: str | None, tmp_path: Path
) -> None:
    net.files = {f"data/{path.name}": path.read_bytes() for path in shards[compression].iterdir()}
    dataset = PrunedStreamingDataset(
        remote=remote, local=str(tmp_path), batch_size=4, shuffle=True, request_latency=1024, min_gap=1
    )
    mask = np.random.default_rng(2).random(NUM_SAMPLES) < 0.3
    mask[0] = True
    skip_list = SkipList.from_keep_mask(dataset.layout, mask, epoch=0, keep_ratio=0.3, method="test", run="test")
    dataset.activate(skip_list, sample_ids=False)
    truth = StreamingDataset(local=str(shards[None]), batch_size=1)
    kept = [truth[index] for index in np.flatnonzero(mask)]
    assert dataset[0] == truth[0]  # the parent has connections when its workers are forked
    net.rest()
    net.requests.clear()
    read = [sample for batch in DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=list) for sample in batch]
    assert sorted(read, key=lambda sample: sample["id"]) == kept
    if compression is None:
        # The first shard is there. A sample is its bytes, their number and its id; and each shard has a head.
        rest = sum(len(sample["x"]) + 12 for sample in kept if sample["id"] >= dataset.shards[0].samples)
        heads = sum(4 * shard.samples + 1000 for shard in dataset.shards[1:])
        assert (
            rest <= net.sent(".mds") <= rest + heads < 0.5 * sum(shard.raw_data.bytes for shard in dataset.shards[1:])
        )
