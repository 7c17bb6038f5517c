"""What a dataset knows of its shards' content, what asking for it costs, and that it does not go stale."""

import copy
import gc
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter, Stream
from tars import write_tar

from ted_stream import PrunedStreamingDataset, SkipList, SkipListError, write_skip_list
from ted_stream.digests import sampled_parts
from ted_stream.reading import content
from ted_stream.reading.sources import LocalSource
from ted_stream.reading.tar_index import index_tars
from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout
from ted_stream.stores.s3 import S3Store

NUM_SAMPLES, SHARDS, PART = 240, 3, 16 << 10


def write(folder: Path, seed: int, *, row: int = 1_000, **arguments: Any) -> Path:
    """Three shards of samples of one size: all that the index says is the same for every seed."""
    rng = np.random.default_rng(seed)
    limit = (row + 4) * NUM_SAMPLES // SHARDS + 400
    with MDSWriter(out=str(folder), columns={"x": f"ndarray:uint8:{row}"}, size_limit=limit, **arguments) as writer:
        for _ in range(NUM_SAMPLES):
            writer.write({"x": rng.integers(0, 256, row, np.uint8)})
    return folder


def replaced(folder: Path, seed: int, **arguments: Any) -> None:
    shutil.rmtree(folder)
    write(folder, seed, **arguments)


@pytest.fixture
def make() -> Callable[..., PrunedStreamingDataset]:
    def make(folder: Path | str, **arguments: Any) -> PrunedStreamingDataset:
        gc.collect()  # streaming gives up a folder only when the earlier dataset is collected
        where = {"local": str(folder)} if isinstance(folder, Path) else {"remote": folder}
        return PrunedStreamingDataset(**{"batch_size": 1, **where, **arguments})

    return make


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every range that is asked of a store or a file: its name and bytes."""
    ranges: list[tuple[str, int]] = []
    for source in (LocalSource, S3Store):
        read = source.read

        def record(self: Any, name: str, begin: int, end: int, *, size: int, read: Any = read) -> bytes:
            ranges.append((name, end - begin))
            return read(self, name, begin, end, size=size)

        monkeypatch.setattr(source, "read", record)
    return ranges


@pytest.fixture
def upload(s3: Any) -> Callable[[Path], str]:
    def upload(folder: Path) -> str:
        for path in folder.iterdir():
            s3.upload_file(str(path), "training", f"data/{path.name}")
        return "s3://training/data"

    return upload


def half_of(layout: DatasetLayout) -> SkipList:
    names = {"epoch": 0, "keep_ratio": 0.5, "method": "m", "run": "old"}
    return SkipList.from_pruned_ids(layout, np.arange(0, layout.num_samples, 2), **names)


def without_content(layout: DatasetLayout) -> DatasetLayout:
    streams = [
        StreamLayout(shards=tuple(ShardLayout(name=s.name, size=s.size, samples=s.samples) for s in stream.shards))
        for stream in layout.streams
    ]
    return DatasetLayout(streams=tuple(streams))


@pytest.mark.quick("hashes")
@pytest.mark.parametrize(
    "arguments",
    [{}, {"row": 100}, {"hashes": ["sha1", "xxh64"]}, {"compression": "zstd"}],
    ids=["large", "small", "hashes", "compressed"],
)
def test_a_list_of_data_that_was_made_anew_is_refused(arguments, make, tmp_path):
    layouts = [make(write(tmp_path / str(seed), seed, **arguments)).layout for seed in (0, 1)]
    assert layouts[0].shape == layouts[1].shape, "else the names, sizes and counts would do"
    again = make(write(tmp_path / "again", 0, **arguments)).layout
    assert layouts[0].fingerprint == again.fingerprint != layouts[1].fingerprint
    path = tmp_path / "list.parquet"
    write_skip_list(half_of(layouts[0]), path)
    with pytest.raises(SkipListError, match="agree in names, sizes and sample counts, but the content of 3 of 3"):
        make(tmp_path / "1", skip_list=path)
    assert len(make(tmp_path / "again", skip_list=path)) == NUM_SAMPLES // 2


@pytest.mark.long
def test_any_part_that_is_looked_at_tells(make, tmp_path):
    folder = write(tmp_path / "data", 0)
    shard = folder / "shard.00001.mds"
    data = bytearray(shard.read_bytes())
    parts = sampled_parts(len(data))
    assert parts[0][0] == 0
    assert parts[-1][1] == len(data)
    assert [end - begin for begin, end in parts] == [PART] * 3
    fingerprints = {make(folder).layout.fingerprint}
    for begin, end in parts:
        for at in (begin, end - 1):
            changed = data.copy()
            changed[at] ^= 1
            shard.write_bytes(changed)
            fingerprints.add(make(folder).layout.fingerprint)
    assert len(fingerprints) == 7


def test_hashes_of_the_index_cost_nothing(make, asked, tmp_path):
    layout = make(write(tmp_path / "data", 0, hashes=["md5", "sha1"])).layout
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    assert [s.content for s in layout.shards] == [f"md5:{s['raw_data']['hashes']['md5']}" for s in index["shards"]]
    assert not asked


@pytest.mark.long
def test_what_has_no_hashes_is_looked_at_beside_what_has(make, asked, tmp_path):
    hashed, plain = write(tmp_path / "hashed", 0, hashes=["sha1"]), write(tmp_path / "plain", 1)
    expected = make(hashed).layout.streams + make(plain).layout.streams
    asked.clear()
    both = PrunedStreamingDataset(streams=[Stream(local=str(folder)) for folder in (hashed, plain)], batch_size=1)
    assert both.layout.streams == expected
    assert {Path(name).parent for name, _ in asked} == {plain}
    index = json.loads((hashed / "index.json").read_text())
    index["shards"][1]["raw_data"]["hashes"] = {}
    (hashed / "index.json").write_text(json.dumps(index))
    assert all(shard.content for shard in make(hashed).layout.shards)


@pytest.mark.long
def test_a_store_is_asked_three_times_a_shard_and_once_for_all(make, asked, upload, tmp_path):
    folder = write(tmp_path / "data", 0)
    local = make(folder).layout
    asked.clear()
    remote, cache = upload(folder), tmp_path / "cache"
    assert make(remote, local=str(cache)).layout == local
    assert len(asked) == 3 * SHARDS
    assert {size for _, size in asked} == {PART}
    # The next job looks at one shard again.
    asked.clear()
    again = make(remote, local=str(cache))
    assert again.layout == local
    assert len(asked) == 3
    assert len({name for name, _ in asked}) == 1
    # Other processes of the node get it from there, and so do workers that are sent the dataset.
    asked.clear()
    other = copy.deepcopy(again)
    other._layout = None
    assert other.layout == local
    assert not asked
    del other
    # What is local is read there; and where nothing is left to be fetched, nothing can be another than it was.
    list(again)
    del again
    asked.clear()
    assert make(remote, local=str(cache)).layout == local
    assert not asked


@pytest.mark.long
def test_small_shards_are_asked_for_once(make, asked, upload, tmp_path):
    layout = make(upload(write(tmp_path / "data", 0, row=100)), local=str(tmp_path / "cache")).layout
    assert layout.knows_content
    assert len(asked) == SHARDS


@pytest.mark.long
@pytest.mark.parametrize("kind", ["s3", "mounted"])
def test_a_remote_that_was_replaced_is_noticed_under_a_kept_digest(kind, make, request, tmp_path):
    """Its index is the same to the byte."""
    put = request.getfixturevalue("upload") if kind == "s3" else str
    folder, cache = write(tmp_path / "data", 0), str(tmp_path / "cache")
    index = (folder / "index.json").read_bytes()
    first = make(put(folder), local=cache).layout
    path = tmp_path / "list.parquet"
    write_skip_list(half_of(first), path)
    replaced(folder, 1)
    assert (folder / "index.json").read_bytes() == index
    remote = put(folder)
    assert make(remote, local=cache).layout.fingerprint == make(folder).layout.fingerprint != first.fingerprint
    with pytest.raises(SkipListError, match="but the content of 3 of 3"):
        make(remote, local=cache, skip_list=path)


@pytest.mark.quick("mounted")
@pytest.mark.parametrize("kind", ["s3", "mounted"])
def test_a_cached_index_does_not_hide_a_remote_that_was_made_anew(kind, make, request, tmp_path):
    put = request.getfixturevalue("upload") if kind == "s3" else str
    folder, cache, path = write(tmp_path / "data", 0, hashes=["sha1"]), tmp_path / "cache", tmp_path / "list.parquet"
    first = make(put(folder), local=str(cache))
    write_skip_list(half_of(first.layout), path)
    assert first[0]  # one shard is there
    del first
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(list(make(put(folder), local=str(cache), skip_list=path))) == NUM_SAMPLES // 2
    replaced(folder, 1, hashes=["sha1"])
    remote = put(folder)
    with pytest.raises(ValueError, match=rf"{cache}/index\.json' is another than '{remote}/index\.json'.* Empty"):
        make(remote, local=str(cache), skip_list=path)
    shutil.rmtree(cache)
    with pytest.raises(SkipListError, match="but the content of 3 of 3"):
        make(remote, local=str(cache), skip_list=path)


def test_a_cache_of_another_remote_is_refused_and_one_stream_s_index_is_compared_once_a_node(
    make, monkeypatch, tmp_path
):
    one, two = (str(write(tmp_path / str(seed), seed, hashes=["sha1"])) for seed in (0, 1))
    cache = tmp_path / "cache"
    compared: list[str] = []
    read = content.read_bytes
    monkeypatch.setattr(content, "read_bytes", lambda path: compared.append(path) or read(path))
    dataset = make(one, local=str(cache))
    assert copy.deepcopy(dataset).layout == dataset.layout
    assert compared == [f"{one}/index.json"]
    del dataset
    with pytest.raises(ValueError, match="local folder has copies of other data"):
        half_of(make(two, local=str(cache)).layout)


def test_a_cache_is_read_on_where_the_remote_cannot_be_reached_with_a_warning(make, tmp_path):
    folder, cache = write(tmp_path / "data", 0, hashes=["sha1"]), str(tmp_path / "cache")
    first = make(str(folder), local=cache)
    assert len(list(first)) == NUM_SAMPLES
    half = half_of(first.layout)
    del first
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match=r"could not be compared with '.*/data/index\.json' \(FileNotFoundError: "):
        subset = make(str(folder), local=cache, skip_list=half)
    assert len(list(subset)) == NUM_SAMPLES // 2


def test_tars_may_have_their_index_in_the_local_folder_alone(make, tmp_path):
    remote, local = tmp_path / "tars", tmp_path / "local"
    remote.mkdir()
    write_tar(remote / "0.tar", {f"{i}.bin": bytes([i]) * 3_000 for i in range(30)})
    index_tars(str(remote / "0.tar"), out=str(local))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert make(str(remote), local=str(local)).layout.knows_content


@pytest.mark.long
def test_one_shard_that_was_replaced_is_noticed_by_the_job_that_draws_it(make, asked, monkeypatch, tmp_path):
    monkeypatch.setattr(content, "_random", random.Random(0))
    folder, cache, other = write(tmp_path / "data", 0), tmp_path / "cache", write(tmp_path / "other", 1)
    first = make(str(folder), local=str(cache)).layout
    kept = (cache / ".ted_content.json").read_bytes()
    shutil.copy(other / "shard.00001.mds", folder)
    noticed = []
    for _ in range(8):
        (cache / ".ted_content.json").write_bytes(kept)
        asked.clear()
        is_other = make(str(folder), local=str(cache)).layout != first
        assert is_other == asked[0][0].endswith("shard.00001.mds")
        noticed.append(is_other)
    assert {True, False} == set(noticed)


@pytest.mark.long
def test_a_kept_digest_of_another_place_or_a_damaged_one_is_not_used(make, tmp_path):
    first, second = write(tmp_path / "0", 0), write(tmp_path / "1", 1)
    cache = tmp_path / "cache"
    assert make(str(first), local=str(cache)).layout.knows_content
    found = make(str(second), local=str(cache)).layout
    assert found.fingerprint == make(second).layout.fingerprint
    (cache / ".ted_content.json").write_text('{"of": "')
    assert make(str(second), local=str(cache)).layout == found


def test_an_older_list_is_matched_by_names_with_one_warning(make, tmp_path):
    folder = write(tmp_path / "data", 0)
    path = tmp_path / "list.parquet"
    write_skip_list(half_of(without_content(make(folder).layout)), path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        subset = make(folder, skip_list=path)
        assert len(list(subset)) == NUM_SAMPLES // 2
    assert len([w for w in told if "could not be checked" in str(w.message)]) == 1


def test_a_store_without_ranges_is_said_to_be_unknown(make, monkeypatch, tmp_path):
    folder = write(tmp_path / "data", 0)
    monkeypatch.setattr(content, "serves_ranges", lambda stream: False)
    cached = make(str(folder), local=str(tmp_path / "cache"))
    list(cached)  # even where all is local by now: it may not be when the run goes on
    with pytest.warns(UserWarning, match=r"What 3 of 3 shards hold cannot be told .*hashes=\['sha1'\]"):
        layout = cached.layout
    assert layout == without_content(make(folder).layout)


def test_a_shard_that_is_missing_is_unknown_and_no_error_where_it_is_pruned(make, tmp_path):
    folder = write(tmp_path / "data", 0)
    layout = make(folder).layout
    names = {"epoch": 0, "keep_ratio": 0.5, "method": "m", "run": "r"}
    pruned = SkipList.from_pruned_ids(layout, np.arange(layout.shard_offsets[2], NUM_SAMPLES), **names)
    (folder / "shard.00002.mds").unlink()
    with pytest.warns(UserWarning, match=r"What 1 of 3 shards hold cannot be told \(shard\.00002\.mds first\)"):
        subset = make(folder, skip_list=pruned)
    assert len(list(subset)) == pruned.num_kept


def test_tars_have_the_digest_in_their_index_or_get_the_same(make, asked, tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(2):
        rng = np.random.default_rng(shard)
        write_tar(folder / f"{shard}.tar", {f"{i}.bin": rng.bytes(3_000) for i in range(30)})
    index_tars(f"{folder}/{{0..1}}.tar")
    indexed = make(folder).layout
    assert not asked
    path = folder / "index.json"
    index = json.loads(path.read_text())
    for shard in index["shards"]:
        assert shard["raw_data"]["hashes"].keys() == {"sampled"}
        shard["raw_data"]["hashes"] = {}  # as an earlier version wrote it
    path.write_text(json.dumps(index))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(folder).layout == indexed
    assert len(asked) == 6
