"""A user's tests of StreamingDataset: with PrunedStreamingDataset in its place they see the same."""

import inspect
import itertools
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import CSVWriter, JSONWriter, MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.base.registry_utils import save_registry
from streaming.base.stream import streams_registry
from streaming.vision.base import StreamingVisionDataset
from torch.utils.data import DataLoader

from ted_stream import Prunable, PrunedStreamingDataset
from ted_stream.reading.sample_seeding import SampleSeeding
from ted_stream.reading.shard_reading import ShardReading

NUM_SAMPLES = 103
PER_SHARD = 17
BATCH_SIZE = 4

Class = type[StreamingDataset]
CLASSES = pytest.mark.parametrize("cls", [StreamingDataset, PrunedStreamingDataset], ids=["stock", "ours"])


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES, per_shard=PER_SHARD)


@pytest.fixture(scope="module")
def other_folder(make_mds: Callable[..., str]) -> str:
    return make_mds(40, per_shard=15, seed=1)


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(tmp_path_factory.mktemp("zipped"), compression="zstd", hashes=["sha1"])


def _write(out: Path, num_samples: int = NUM_SAMPLES, **arguments: Any) -> str:
    # Shards of several blocks of a disk, where what the cache holds is counted in blocks and in bytes alike.
    with MDSWriter(out=str(out), columns={"id": "int", "data": "bytes"}, size_limit=1 << 15, **arguments) as writer:
        rng = np.random.default_rng(0)
        for index in range(num_samples):
            writer.write({"id": index, "data": rng.bytes(2000)})
    return str(out)


def ids_of(dataset: StreamingDataset) -> list[int]:
    return [int(sample["id"]) for sample in dataset]


def loader_ids(loader: DataLoader) -> list[list[int]]:
    return [[sample["id"] for sample in batch] for batch in loader]


def same(observe: Callable[[Class], Any]) -> Any:
    """What both classes let a user observe, which must be the same."""
    stock = observe(StreamingDataset)
    assert observe(PrunedStreamingDataset) == stock
    return stock


def outcome(call: Callable[[], Any]) -> tuple[type[BaseException], str]:
    """Which error a call raises, whatever kind it is, and what it says."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    pytest.fail("nothing is raised")


# Construction --------------------------------------------------------------------------------------------------


def test_every_argument_is_taken(tmp_path: Path, folder: str) -> None:
    arguments: dict[str, Any] = {
        "remote": folder,
        "split": "",
        "download_retry": 3,
        "download_timeout": 30.0,
        "validate_hash": None,
        "keep_zip": True,
        "epoch_size": "90",
        "predownload": 12,
        "cache_limit": "1mb",
        "sampling_method": "fixed",
        "sampling_granularity": 2,
        "partition_algo": "orig",
        "num_canonical_nodes": 2,
        "batch_size": BATCH_SIZE,
        "shuffle": True,
        "shuffle_algo": "py1s",
        "shuffle_seed": 7,
        "shuffle_block_size": 50,
        "batching_method": "stratified",
        "allow_unsafe_types": True,
        "replication": 1,
        "stream_name": "stream",
        "stream_config": {},
    }
    assert {*arguments, "self", "streams", "local"} == set(inspect.signature(StreamingDataset.__init__).parameters)

    def observe(cls: Class) -> Any:
        local = tmp_path / cls.__name__
        dataset = cls(**arguments | {"local": str(local), "stream_config": {}})
        stream = dataset.streams[0]
        attributes = {name: getattr(dataset, name) for name in arguments if hasattr(dataset, name)}
        return attributes, stream.download_retry, stream.download_timeout, stream.keep_zip, ids_of(dataset)

    attributes, *_, ids = same(observe)
    assert attributes["cache_limit"] == 1 << 20
    assert len(attributes) == 15
    assert 80 < len(ids) <= 90  # stratified batching drops what does not fill a batch


def test_arguments_that_do_not_exist_are_refused(folder: str) -> None:
    for cls in (StreamingDataset, PrunedStreamingDataset):
        with pytest.raises(TypeError, match="no_such_argument"):
            cls(local=folder, no_such_argument=1)  # pyright: ignore[reportCallIssue]
        with pytest.raises(TypeError, match="positional"):
            cls(folder)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"local": "{folder}", "streams": "{streams}"},
        {"local": "/nowhere/at/all"},
        {"remote": "/nowhere/at/all", "local": "{new}"},
        {"local": "{folder}", "split": "no_such_split"},
        {"local": "{empty}"},
        {"local": "{folder}", "sampling_method": "sometimes"},
        {"local": "{folder}", "sampling_granularity": 0},
        {"local": "{folder}", "batching_method": "sometimes"},
        {"local": "{folder}", "shuffle_seed": -1},
        {"local": "{folder}", "epoch_size": -1},
        {"local": "{folder}", "epoch_size": "many"},
        {"local": "{folder}", "stream_name": "no_such_stream"},
        {"remote": "{folder}", "local": "{new}", "cache_limit": 100},
        {"remote": "{folder}", "local": "{new}", "cache_limit": "2kb"},
        {"remote": "{folder}", "local": "{new}", "download_retry": -1},
    ],
    ids=str,
)
def test_wrong_arguments_are_the_same_errors(tmp_path: Path, folder: str, arguments: dict[str, Any]) -> None:
    empty = tmp_path / "empty"
    with MDSWriter(out=str(empty), columns={"id": "int"}):
        pass

    def observe(cls: Class) -> tuple[type[BaseException], str]:
        known: dict[Any, Any] = {"{folder}": folder, "{empty}": str(empty), "{new}": str(tmp_path / "new")}
        known["{streams}"] = [Stream(local=folder)]
        filled: dict[str, Any] = {name: known.get(value, value) for name, value in arguments.items()}
        try:
            return outcome(lambda: cls(**filled))
        finally:
            shutil.rmtree(tmp_path / "new", ignore_errors=True)

    same(observe)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": None},
        {"batch_size": 2.5},
        {"shuffle": True, "shuffle_algo": "no_such_algorithm"},
        {"partition_algo": "no_such_algorithm"},
    ],
    ids=str,
)
def test_wrong_arguments_that_show_in_an_epoch(folder: str, arguments: dict[str, Any]) -> None:
    def observe(cls: Class) -> tuple[type[BaseException], str]:
        dataset = cls(**{"local": folder, "batch_size": BATCH_SIZE} | arguments)
        return outcome(lambda: next(iter(dataset)))

    same(observe)


def test_a_small_predownload_warns(folder: str) -> None:
    for cls in (StreamingDataset, PrunedStreamingDataset):
        with pytest.warns(UserWarning, match="predownload < batch_size"):
            cls(local=folder, batch_size=BATCH_SIZE, predownload=1)


def test_a_local_folder_of_two_remotes_is_refused(tmp_path: Path, folder: str, other_folder: str) -> None:
    def observe(cls: Class) -> tuple[type[BaseException], str]:
        local = str(tmp_path / "local")
        first = cls(remote=folder, local=local, batch_size=BATCH_SIZE)
        error = outcome(lambda: cls(remote=other_folder, local=local, batch_size=BATCH_SIZE))
        del first
        shutil.rmtree(local)
        return error

    same(observe)


def test_a_local_folder_is_free_once_its_dataset_has_read(tmp_path: Path, folder: str) -> None:
    """As where a notebook's cell runs again."""

    def observe(cls: Class) -> list[int]:
        arguments: dict[str, Any] = {"remote": folder, "local": str(tmp_path / cls.__name__), "batch_size": BATCH_SIZE}
        first = cls(**arguments)
        assert first[0]["id"] == 0
        return ids_of(cls(**arguments))

    same(observe)


# Attributes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"batch_size": BATCH_SIZE, "shuffle": True, "num_canonical_nodes": 1},
        {"batch_size": BATCH_SIZE, "epoch_size": 90, "num_canonical_nodes": 2, "batching_method": "stratified"},
    ],
    ids=str,
)
def test_public_attributes_have_the_same_values(folder: str, arguments: dict[str, Any]) -> None:
    def observe(cls: Class) -> dict[str, Any]:
        dataset = cls(local=folder, **arguments)
        for_objects = {
            "streams": lambda streams: [(stream.local, stream.choose, stream.proportion) for stream in streams],
            "shards": lambda shards: [(type(shard), shard.samples, shard.get_raw_size()) for shard in shards],
            "spanner": lambda spanner: [tuple(map(int, spanner[i])) for i in range(NUM_SAMPLES)],
        }
        observed = {}
        for name in stock_names:
            value = getattr(dataset, name)
            value = for_objects[name](value) if name in for_objects else value
            observed[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return observed

    stock_dataset = StreamingDataset(local=folder, **arguments)
    properties = [name for name, value in inspect.getmembers(StreamingDataset) if isinstance(value, property)]
    # What the cache holds is counted in blocks of the disk, not in bytes of files.
    stock_names = {name for name in [*vars(stock_dataset), *properties] if name[0] != "_"} - {"cache_usage"}
    assert len(stock_names) >= 25
    assert {"size", "next_epoch", "num_samples", "length", "epoch_size", "samples_per_shard"} <= stock_names
    observed = same(observe)
    assert observed["size"] == NUM_SAMPLES


def test_public_methods_take_the_same_arguments() -> None:
    for name, stock in inspect.getmembers(StreamingDataset, inspect.isfunction):
        if name[0] != "_":
            ours = getattr(PrunedStreamingDataset, name)
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(stock).parameters), name


def test_it_is_a_streaming_dataset(folder: str) -> None:
    dataset = PrunedStreamingDataset(local=folder, batch_size=BATCH_SIZE)
    assert isinstance(dataset, StreamingDataset)
    assert dataset.size == dataset.num_samples == NUM_SAMPLES


@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_the_length_is_stocks_or_what_stock_really_yields(folder: str, nodes: int) -> None:
    arguments: dict[str, Any] = {"local": folder, "batch_size": BATCH_SIZE, "num_canonical_nodes": nodes}
    stock, ours = StreamingDataset(**arguments), PrunedStreamingDataset(**arguments)
    assert len(stock) == NUM_SAMPLES
    assert len(ours) == len(ids_of(stock)) == len(ids_of(ours))
    assert len(ours) - len(stock) == -NUM_SAMPLES % nodes  # repeats that streaming's partitioning pads with


# Reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        NUM_SAMPLES - 1,
        -NUM_SAMPLES,
        np.int64(50),
        slice(5, 60, 7),
        slice(None, None, -20),
        slice(90, 1000),
        [3, -3, 80],
        [[1, 2], [3]],
        np.array([[0, 50], [102, -1]]),
        [],
    ],
    ids=str,
)
def test_indexing(folder: str, index: Any) -> None:
    def ids(items: Any) -> Any:
        return [ids(item) for item in items] if isinstance(items, list) else (items["id"], items["x"].tolist())

    same(lambda cls: ids(cls(local=folder)[index]))


@pytest.mark.parametrize("index", [NUM_SAMPLES, -NUM_SAMPLES - 1, [0, NUM_SAMPLES], "0", 1.5, None, (0, 1)], ids=str)
def test_indexes_that_do_not_exist(folder: str, index: Any) -> None:
    assert same(lambda cls: outcome(lambda: cls(local=folder)[index]))[0] in (IndexError, ValueError)


def test_samples_by_the_older_name(folder: str) -> None:
    same(lambda cls: cls(local=folder).get_item(60)["x"].tolist())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_the_order_of_several_epochs(folder: str, *, shuffle: bool, workers: int) -> None:
    def observe(cls: Class) -> list[list[list[int]]]:
        dataset = cls(local=folder, batch_size=BATCH_SIZE, shuffle=shuffle, num_canonical_nodes=2)
        loader = DataLoader(
            dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=list, persistent_workers=workers > 0
        )
        return [loader_ids(loader) for _ in range(3)]

    epochs = same(observe)
    assert all(set(itertools.chain(*epoch)) == set(range(NUM_SAMPLES)) for epoch in epochs)
    assert (epochs[0] == epochs[1]) is not shuffle


def test_an_epoch_that_is_abandoned_counts(folder: str) -> None:
    def observe(cls: Class) -> Any:
        dataset = cls(local=folder, batch_size=BATCH_SIZE, shuffle=True)
        first = [sample["id"] for sample, _ in zip(dataset, range(10), strict=False)]
        return first, dataset.next_epoch, ids_of(dataset), dataset.next_epoch

    first, after_first, second, after_second = same(observe)
    assert (len(first), after_first, len(second), after_second) == (10, 1, NUM_SAMPLES, 2)


@pytest.mark.parametrize("batching_method", ["random", "stratified", "per_stream", "device_per_stream"])
@pytest.mark.parametrize("sampling_method", ["balanced", "fixed"])
def test_streams_in_proportions(folder: str, other_folder: str, batching_method: str, sampling_method: str) -> None:
    def observe(cls: Class) -> Any:
        streams = [Stream(local=folder, proportion=0.25), Stream(local=other_folder, proportion=0.75)]
        dataset = cls(
            streams=streams,
            epoch_size=160,
            batch_size=BATCH_SIZE,
            shuffle=True,
            num_canonical_nodes=1,
            batching_method=batching_method,
            sampling_method=sampling_method,
        )
        epochs = [[(sample["id"], sample["y"]) for sample in dataset] for _ in range(2)]
        return epochs, dataset.epoch_size, len(dataset), [stream.choose for stream in streams]

    epochs, epoch_size, length, choose = same(observe)
    assert (epoch_size, length, choose) == (160, 160, [40, 120])
    assert len(epochs[0]) == len(epochs[1]) > 150


@pytest.mark.parametrize(
    "weights", [({"repeat": 0.5}, {"repeat": 2}), ({"choose": 30}, {"choose": 45}), ({}, {})], ids=str
)
def test_streams_repeated_and_chosen(folder: str, other_folder: str, weights: tuple[dict[str, Any], ...]) -> None:
    def observe(cls: Class) -> Any:
        streams = [Stream(local=local, **weight) for local, weight in zip((folder, other_folder), weights, strict=True)]
        dataset = cls(streams=streams, batch_size=BATCH_SIZE, num_canonical_nodes=1)
        return (
            ids_of(dataset),
            len(dataset),
            dataset.samples_per_stream.tolist(),
            dataset.resample_streams(0)[1].tolist(),
        )

    ids, length, samples, _ = same(observe)
    assert len(ids) == length
    assert samples == [NUM_SAMPLES, 40]


def test_streams_both_by_proportion_and_by_repeat_are_refused(folder: str, other_folder: str) -> None:
    def observe(cls: Class) -> tuple[type[BaseException], str]:
        streams = [Stream(local=folder, proportion=1), Stream(local=other_folder, repeat=1)]
        return outcome(lambda: cls(streams=streams))

    assert same(observe)[0] is ValueError


@pytest.mark.parametrize("writer", [CSVWriter, JSONWriter], ids=["csv", "json"])
@pytest.mark.parametrize("compression", [None, "gz"])
def test_text_formats(tmp_path: Path, writer: Any, compression: str | None) -> None:
    remote = tmp_path / "remote"
    with writer(out=str(remote), columns={"id": "int", "text": "str"}, size_limit=200, compression=compression) as out:
        for index in range(50):
            out.write({"id": index, "text": f"sample {index}"})

    def observe(cls: Class) -> Any:
        local = tmp_path / cls.__name__
        dataset = cls(remote=str(remote), local=str(local), batch_size=BATCH_SIZE, shuffle=True)
        return list(dataset), dataset[-1], sorted(os.listdir(local))

    samples, last, files = same(observe)
    assert len(samples) == 50
    assert last == {"id": 49, "text": "sample 49"}
    assert len(files) > 5


def test_what_a_subclass_does_to_samples(folder: str) -> None:
    def observe(cls: Class) -> Any:
        class Doubled(cls):  # pyright: ignore[reportGeneralTypeIssues]
            def __init__(self, factor: int, **arguments: Any) -> None:
                super().__init__(**arguments)
                self.factor = factor

            def __getitem__(self, at: Any) -> Any:
                return super().__getitem__(at)["id"] * self.factor

        dataset = Doubled(2, local=folder, batch_size=BATCH_SIZE, shuffle=True)
        return list(dataset), dataset[3], dataset.factor

    samples, third, _ = same(observe)
    assert sorted(samples) == list(range(0, 2 * NUM_SAMPLES, 2))
    assert third == 6


def test_a_registered_stream(folder: str) -> None:
    class Quiet(Stream):
        def __init__(self, *, note: str, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.note = note

    def observe(cls: Class) -> Any:
        with save_registry():
            streams_registry.register("quiet", func=Quiet)
            dataset = cls(local=folder, batch_size=BATCH_SIZE, stream_name="quiet", stream_config={"note": "hush"})
        return type(dataset.streams[0]), dataset.streams[0].note, ids_of(dataset)  # pyright: ignore

    assert same(observe)[:2] == (Quiet, "hush")


def test_pickling(folder: str) -> None:
    def observe(cls: Class) -> Any:
        dataset = cls(local=folder, batch_size=BATCH_SIZE, shuffle=True)
        copy = pickle.loads(pickle.dumps(dataset))
        assert type(copy) is cls
        return copy[7]["x"].tolist(), len(copy), ids_of(copy), dataset.next_epoch  # they share the epoch

    assert same(observe)[-1] == 1


# Resumption ----------------------------------------------------------------------------------------------------

IN_TURN = pytest.mark.parametrize(
    ("before", "after"),
    [
        (StreamingDataset, StreamingDataset),
        (PrunedStreamingDataset, PrunedStreamingDataset),
        (StreamingDataset, PrunedStreamingDataset),
        (PrunedStreamingDataset, StreamingDataset),
    ],
    ids=["stock", "ours", "stock then ours", "ours then stock"],
)


def _loader(cls: Class, folder: str, workers: int = 0) -> StreamingDataLoader:
    dataset = cls(local=folder, batch_size=BATCH_SIZE, shuffle=True, num_canonical_nodes=2, shuffle_seed=3)
    return StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)


def _batches(loader: StreamingDataLoader) -> list[list[int]]:
    return [batch["id"].tolist() for batch in loader]


@pytest.mark.quick("1-ours")
@IN_TURN
@pytest.mark.parametrize("workers", [0, 1])
def test_resumption_in_the_middle_of_an_epoch(folder: str, before: Class, after: Class, workers: int) -> None:
    loader = _loader(StreamingDataset, folder, workers)
    expected = [_batches(loader) for _ in range(3)]
    del loader

    loader = _loader(before, folder, workers)
    assert _batches(loader) == expected[0]
    iterator = iter(loader)
    batches = [next(iterator)["id"].tolist() for _ in range(10)]
    state = loader.state_dict()
    assert state is not None
    del iterator, loader
    assert state == {
        "epoch": 1,
        "sample_in_epoch": 10 * BATCH_SIZE,
        "num_canonical_nodes": 2,
        "shuffle_seed": 3,
        "initial_physical_nodes": 1,
    }

    resumed = _loader(after, folder, workers)
    resumed.load_state_dict(state)
    assert batches + _batches(resumed) == expected[1]
    assert _batches(resumed) == expected[2]


def test_states_of_a_dataset_alone(folder: str) -> None:
    def observe(cls: Class) -> Any:
        dataset = cls(local=folder, batch_size=BATCH_SIZE, shuffle=True)
        states = [dataset.state_dict(0, from_beginning=True)]
        iterator = iter(dataset)
        first = [next(iterator)["id"] for _ in range(12)]
        states.append(dataset.state_dict(12, from_beginning=False))
        dataset.load_state_dict(states[-1])
        states.append(dataset.state_dict(4, from_beginning=False))  # counted on top of what was resumed
        states.append(dataset.state_dict(4, from_beginning=True))
        resumed = cls(local=folder, batch_size=BATCH_SIZE, shuffle=True)
        resumed.load_state_dict(states[1])
        return states, first, ids_of(resumed), resumed.next_epoch, ids_of(resumed)

    states, first, rest, next_epoch, _ = same(observe)
    assert sorted(first + rest) == list(range(NUM_SAMPLES))
    assert [state["sample_in_epoch"] for state in states] == [0, 12, 16, 4]
    assert next_epoch == 1


def test_a_state_that_is_too_large_is_refused(folder: str) -> None:
    def observe(cls: Class) -> tuple[type[BaseException], str]:
        return outcome(lambda: cls(local=folder).load_state_dict({"key": "a" * 10_000}))

    assert same(observe)[0] is ValueError


# The cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, zipped: str) -> Callable[..., Any]:
    """A function that makes a dataset with an empty local folder of its own, and lists that folder."""

    def make(cls: Class, **arguments: Any) -> tuple[StreamingDataset, Callable[[], list[str]]]:
        local = tmp_path / cls.__name__
        shutil.rmtree(local, ignore_errors=True)
        dataset = cls(**{"remote": zipped, "local": str(local), "batch_size": BATCH_SIZE} | arguments)
        return dataset, lambda: sorted(os.listdir(local))

    return make


@pytest.mark.parametrize("keep_zip", [False, True])
@pytest.mark.parametrize("validate_hash", [None, "sha1"])
def test_compressed_shards(cached: Any, *, keep_zip: bool, validate_hash: str | None) -> None:
    def observe(cls: Class) -> Any:
        dataset, files = cached(cls, keep_zip=keep_zip, validate_hash=validate_hash)
        before, one, during = files(), dataset[0]["id"], files()
        return before, one, during, ids_of(dataset), files()

    before, _, during, ids, after = same(observe)
    assert before == ["index.json"]
    assert during == ["index.json", "shard.00000.mds"] + ["shard.00000.mds.zstd"] * keep_zip
    assert sorted(ids) == list(range(NUM_SAMPLES))
    assert len(after) > len(during)


@pytest.mark.parametrize("keep_zip", [False, True])
def test_shards_prepared_and_evicted_by_hand(cached: Any, *, keep_zip: bool) -> None:
    def observe(cls: Class) -> Any:
        dataset, files = cached(cls, keep_zip=keep_zip)
        listings = []
        for shard_id in range(dataset.num_shards):
            dataset.prepare_shard(shard_id)
        listings.append(files())
        dataset.evict_coldest_shard()
        listings.append(files())
        for shard_id in range(1, dataset.num_shards):
            dataset.evict_shard(shard_id)
        listings.append(files())
        samples = [sample["id"] for sample in dataset[:]]
        listings.append(files())
        return listings, samples

    listings, samples = same(observe)
    assert samples == list(range(NUM_SAMPLES))
    assert listings[2] == ["index.json"]
    assert listings[3] == listings[0]
    assert set(listings[1]) < set(listings[0])


@CLASSES
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_limit_evicts_shards(cached: Any, cls: Class, workers: int) -> None:
    dataset, files = cached(cls, cache_limit="400kb" if workers else "300kb", predownload=8)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=list)
    for _ in range(2):
        assert sorted(itertools.chain(*loader_ids(loader))) == list(range(NUM_SAMPLES))
    assert dataset.num_shards == 7
    assert 1 < len(files()) <= dataset.num_shards + 1
    assert 0 < dataset.cache_usage <= dataset.cache_limit


def test_samples_come_when_they_are_asked_for(cached: Any) -> None:
    def observe(cls: Class) -> Any:
        dataset, files = cached(cls, predownload=BATCH_SIZE)
        return dataset[-1]["id"], files(), dataset[0]["id"], files()

    assert same(observe)[1] == ["index.json", "shard.00006.mds"]


def test_shards_that_exist_nowhere(cached: Any, zipped: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(zipped, broken)
    (broken / "shard.00003.mds.zstd").unlink()

    def observe(cls: Class) -> tuple[type[BaseException], str]:
        dataset, _ = cached(cls, remote=str(broken), download_retry=1)
        assert dataset[0]["id"] == 0
        kind, message = outcome(lambda: dataset[int(dataset.sample_offset_per_shard[3])])
        return kind, message.replace(cls.__name__, "")

    same(observe)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("has_remote", [False, True])
def test_local_shards_that_are_missing_are_named(
    tmp_path: Path, when: str, compression: str | None, *, has_remote: bool
) -> None:
    """Streaming says that a remote must be provided, or that a file of its own folder cannot be copied."""
    local = _write(tmp_path / "local", compression=compression)
    path = Path(local, "shard.00003.mds" + ("" if compression is None else f".{compression}"))
    if when == "before":
        path.unlink()
    places: dict[str, Any] = {"local": local, "remote": f"{local}/"} if has_remote else {"local": local}
    dataset = PrunedStreamingDataset(**places, batch_size=BATCH_SIZE, download_retry=1)
    if when == "after":
        path.unlink()
    assert dataset[0]["id"] == 0
    reason = "has the same folder as its remote" if has_remote else "has no remote"
    words = rf"shard file .*{re.escape(str(path))} is missing, and the dataset {reason} .* Restore"
    with pytest.raises(FileNotFoundError, match=words):
        dataset[int(dataset.sample_offset_per_shard[3])]
    with pytest.raises((FileNotFoundError, RuntimeError), match=words):
        ids_of(dataset)


def test_the_signature_shows_stocks_parameters() -> None:
    stock = inspect.signature(StreamingDataset).parameters
    ours = inspect.signature(PrunedStreamingDataset).parameters
    assert stock.items() <= ours.items()
    beyond = {"skip_list", "sample_ids", "seed_samples", "request_latency", "min_gap", "decoders"}
    assert beyond <= set(ours)

    class Mine(Prunable, StreamingVisionDataset):
        """Hands on what it does not name, to one that names all that it takes."""

    class Closed(PrunedStreamingDataset):
        def __init__(self, local: str) -> None:
            super().__init__(local=local)

    assert set(inspect.signature(Mine).parameters) == beyond | set(inspect.signature(StreamingVisionDataset).parameters)
    assert list(inspect.signature(Closed).parameters) == ["local"]


def test_every_argument_is_named_as_those_behind_it_name_it() -> None:
    def named(cls: type) -> dict[str, inspect.Parameter]:
        parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    behind = named(StreamingDataset) | named(Prunable) | named(SampleSeeding) | named(ShardReading)
    ours = named(PrunedStreamingDataset)
    assert list(ours) == list(inspect.signature(PrunedStreamingDataset).parameters)  # no *args or **kwargs
    assert list(ours) == list(behind)
    for name, parameter in behind.items():
        assert ours[name] == parameter, name  # kind, default and annotation


def test_every_argument_arrives(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(Prunable, "__init__", lambda self, **arguments: taken.update(arguments))
    arguments = {name: object() for name in inspect.signature(PrunedStreamingDataset).parameters}
    PrunedStreamingDataset(**arguments)  # pyright: ignore[reportArgumentType]
    assert taken == arguments
    with pytest.raises(TypeError, match="shufle"):
        PrunedStreamingDataset(local=folder, shufle=True)  # pyright: ignore[reportCallIssue]
