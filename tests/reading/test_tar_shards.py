"""WebDataset tars read in place give webdataset's samples, and train as an MDS dataset of the same images does."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter, Stream, StreamingDataset
from streaming.base.format.base.reader import FileInfo
from tars import NUM_SAMPLES, PER_SHARD, SHARDS, SIDE, pixels, write_shards, write_tar
from torch.utils.data import DataLoader
from webdataset import autodecode
from webdataset.compat import WebDataset
from webdataset.filters import decode

from ted_stream import PrunedStreamingDataset, SkipList
from ted_stream.reading.tar_index import index_tars
from ted_stream.reading.tar_members import members
from ted_stream.reading.tar_shards import TarReader, offsets_file, parse_offsets, set_decoders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    index_tars(write_shards(folder))
    return folder


def readers(folder: Path) -> list[TarReader]:
    index = json.loads((folder / "index.json").read_text())
    return [TarReader.from_json(str(folder), None, shard) for shard in index["shards"]]


def plain(folder: Path, *decoders: Any) -> list[dict[str, Any]]:
    dataset = WebDataset(str(folder / "x-{0..3}.tar"), shardshuffle=False).compose(decode(*decoders))
    return [{k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")} for sample in dataset]


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert type(one[name]) is type(other[name])
            np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]))


@pytest.fixture
def damage(folder: Path, tmp_path: Path) -> Callable[[str, Callable[[bytearray], Any]], TarReader]:
    """A function that changes a file of the second shard and returns the reader of that shard."""

    def change(suffix: str, edit: Callable[[bytearray], Any]) -> TarReader:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        data = bytearray((folder / f"x-1.tar{suffix}").read_bytes())
        edit(data)
        (copy / f"x-1.tar{suffix}").write_bytes(data)
        return readers(copy)[1]

    return change


def parsed(reader: TarReader, meta: bytes) -> np.ndarray:
    return parse_offsets(meta, samples=reader.samples, tar=reader.raw_data, file=reader.raw_meta)


def offsets_of(reader: TarReader) -> np.ndarray:
    return parsed(reader, (Path(reader.dirname) / reader.raw_meta.basename).read_bytes())


def test_samples_are_webdatasets(folder: Path) -> None:
    expected = plain(folder, "pil")
    assert len(expected) == NUM_SAMPLES
    assert [sample["json"]["id"] for sample in expected] == list(range(NUM_SAMPLES))
    assert_same([reader[at] for reader in readers(folder) for at in range(PER_SHARD)], expected)
    stock = StreamingDataset(local=str(folder), batch_size=1)
    assert_same([stock[at] for at in range(NUM_SAMPLES)], expected)


def test_every_sample_is_in_its_bytes(folder: Path) -> None:
    expected = plain(folder, "pil")
    for shard, reader in enumerate(readers(folder)):
        offsets = offsets_of(reader)
        assert offsets.shape == (PER_SHARD + 1,)
        assert offsets.dtype == np.int64
        tar = (folder / reader.raw_data.basename).read_bytes()
        spans = [tar[begin:end] for begin, end in pairwise(offsets)]
        assert spans == [reader.get_sample_data(at) for at in range(PER_SHARD)]
        ours = [reader.decode_sample(span) for span in spans]
        assert_same(ours, expected[shard * PER_SHARD : (shard + 1) * PER_SHARD])


def test_a_tar_is_walked_without_a_list_of_its_members(folder: Path) -> None:
    with tarfile.open(folder / "x-1.tar") as tar:
        known = [(member.name, len(vars(tar)["members"])) for member in members(tar)]
    with tarfile.open(folder / "x-1.tar") as tar:
        assert known == [(name, 0) for name in tar.getnames()]


@pytest.mark.long
def test_an_epoch_is_that_of_mds(folder: Path, tmp_path: Path) -> None:
    columns = {"index": "int", "image": f"ndarray:uint8:{SIDE},{SIDE},3"}
    row = 8 + 3 * SIDE * SIDE + 4
    with MDSWriter(out=str(tmp_path), columns=columns, size_limit=row * PER_SHARD + 250) as writer:
        for index in range(NUM_SAMPLES):
            writer.write({"index": index, "image": pixels(index)})
    arguments: dict[str, Any] = {
        "shuffle": True,
        "shuffle_block_size": 30,
        "batch_size": 4,
        "num_canonical_nodes": 2,
        "sample_ids": True,
    }
    pruned = np.union1d(np.arange(0, NUM_SAMPLES, 3), np.arange(PER_SHARD, 2 * PER_SHARD))

    def epochs(local: Path) -> list[list[tuple[Any, ...]]]:
        layout = PrunedStreamingDataset(local=str(local), batch_size=4).layout
        assert [shard.samples for shard in layout.shards] == [PER_SHARD] * SHARDS
        if local == folder:
            assert [shard.name for shard in layout.shards] == [f"x-{shard}.tar" for shard in range(SHARDS)]
        skip_list = SkipList.from_pruned_ids(layout, pruned, epoch=0, keep_ratio=0.5, method="test", run="test")
        dataset = PrunedStreamingDataset(local=str(local), skip_list=skip_list, **arguments)
        loader = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True, collate_fn=list)
        found = []
        for _ in range(2):
            found.append([])
            for sample in (sample for batch in loader for sample in batch):
                index = sample["index"] if "index" in sample else sample["json"]["id"]
                image = np.asarray(sample["image"] if "image" in sample else sample["png"])
                found[-1].append((sample["sample_id"], index, image.tobytes()))
        return found

    ours = epochs(folder)
    assert ours == epochs(tmp_path)
    assert ours[0] != ours[1]
    for epoch in ours:
        assert {sample_id for sample_id, _, _ in epoch} == set(range(NUM_SAMPLES)) - set(pruned.tolist())


def test_decoders(folder: Path) -> None:
    def bytes_of(extension: str, data: bytes) -> Any:
        return ("mine", data) if extension == ".cls" else None

    shards = readers(folder)
    for decoders in (("rgb8",), ("torchrgb",), (bytes_of, "pill"), ()):
        set_decoders(shards, decoders)
        assert_same([reader[2] for reader in shards], plain(folder, *decoders)[2::PER_SHARD])
    set_decoders(shards, ["torchrgb8"])
    assert isinstance(pickle.loads(pickle.dumps(shards[0]))[0]["png"], torch.Tensor)
    set_decoders([], ["pil"])  # nothing to set, as with a dataset of another format
    with pytest.raises(ValueError, match="RGB"):
        set_decoders(shards, ["RGB"])


class Executed:
    """Unpickles to a call that leaves a mark."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Executed, "ran", True)


def test_what_webdataset_unpickles_is_refused(folder: Path) -> None:
    unpickled = set()
    for extension, decoder in autodecode.decoders.items():
        Executed.ran = False
        with suppress(Exception):
            decoder(pickle.dumps(Executed()))
        if Executed.ran:
            unpickled.add(extension)
    assert unpickled == {"pkl", "pickle", "pyd", "pth"}

    def reader(*extensions: str) -> TarReader:
        file = FileInfo("x.tar", 1, {})
        return TarReader("", None, raw_data=file, raw_meta=file, samples=1, extensions=extensions)

    for extension in [*unpickled, "depth.pkl", "pyd.gz"]:
        with pytest.raises(ValueError, match=rf"x\.tar have \.{extension} members.*allow_unsafe_types"):
            reader("jpg", extension).validate(False)
        reader("jpg", extension).validate(True)
    reader("jpg", "pkl.txt", "npz", "npy").validate(False)
    for shard in readers(folder):
        shard.validate(False)


def test_pickled_members_are_refused_by_a_dataset(tmp_path: Path) -> None:
    index_tars(str(write_tar(tmp_path / "x.tar", {"a.pkl": pickle.dumps(5), "a.txt": b"b"})))
    with pytest.raises(ValueError, match=r"allow_unsafe_types"):
        StreamingDataset(local=str(tmp_path), batch_size=1)
    assert StreamingDataset(local=str(tmp_path), batch_size=1, allow_unsafe_types=True)[0]["pkl"] == 5


def test_damaged_samples_are_named(
    folder: Path, damage: Callable[[str, Callable[[bytearray], Any]], TarReader]
) -> None:
    begin = int(offsets_of(readers(folder)[1])[3])
    data = readers(folder)[1].get_sample_data(3)
    # The header of the first member, one of the next, and the image.
    second = begin + data.index(b"ustar", data.index(b"\x89PNG")) - 257
    for at, value in ((begin + 20, b"\xff"), (second, b"\xff"), (begin + data.index(b"\x89PNG"), b"xxxx")):
        reader = damage("", lambda tar, at=at, value=value: tar.__setitem__(slice(at, at + len(value)), value))
        with pytest.raises(ValueError, match=r"Sample 3 of x-1\.tar"):
            reader[3]
        assert reader[2]["json"] == {"id": PER_SHARD + 2}
        assert reader[4]["json"] == {"id": PER_SHARD + 4}
    with pytest.raises(ValueError, match=r"x-1\.tar is not what was indexed: 2 samples"):
        readers(folder)[1].decode_sample(data + readers(folder)[1].get_sample_data(4))
    with pytest.raises(ValueError, match=r"x-1\.tar .*0 samples"):
        readers(folder)[1].decode_sample(bytes(1024))
    with pytest.raises(ValueError, match=r"x-1\.tar ends within sample 3.*truncated"):
        damage("", lambda tar: tar.__delitem__(slice(begin + 700, None)))[3]


def test_damaged_offsets_are_named(
    folder: Path, damage: Callable[[str, Callable[[bytearray], Any]], TarReader]
) -> None:
    reader = readers(folder)[1]
    meta = (folder / "x-1.tar.offsets").read_bytes()
    offsets = parsed(reader, meta).astype(np.uint64)
    bad = {
        "begins with": [b"", b"xx" + meta[2:], meta[:6] + b"\x02" + meta[7:]],
        "for .* the index has 20": [offsets_file(offsets[:-1]), meta[:-1], meta[:-8], meta[:10], meta + b"\0"],
        "checksum": [meta[:-1] + b"\x01", meta[:30] + b"\xff" + meta[31:]],
        "ascend": [offsets_file(np.concatenate([offsets[:5], offsets[4:5], offsets[6:]]))],
        "after the": [offsets_file(np.concatenate([offsets[:-1], [np.uint64(1 << 62)]]))],
    }
    for message, metas in bad.items():
        for damaged in metas:
            with pytest.raises(ValueError, match=rf"x-1\.tar\.offsets cannot be used.*({message})"):
                parsed(reader, damaged)
    with pytest.raises(ValueError, match=r"x-1\.tar\.offsets is damaged: it has sample 3"):
        damage(".offsets", lambda meta: meta.__setitem__(slice(20 + 8 * 4, 28 + 8 * 4), b"\xff" * 8))[3]
    with pytest.raises(ValueError, match=r"x-1\.tar\.offsets is damaged: it has sample 19"):
        damage(".offsets", lambda meta: meta.__delitem__(slice(-1, None)))[19]


def test_a_hash_of_whole_tars_is_refused(folder: Path) -> None:
    dataset = PrunedStreamingDataset(local=str(folder), batch_size=4, validate_hash="sha1")
    with pytest.raises(ValueError, match=r"the index of the tar .* has no hashes of whole files\. Leave it out"):
        dataset[0]


def test_an_index_of_another_kind_is_refused(folder: Path) -> None:
    shard = json.loads((folder / "index.json").read_text())["shards"][0]
    for change in ({"format": "tgz"}, {"version": 3}):
        with pytest.raises(ValueError, match=r"not 'tar', version 2"):
            TarReader.from_json("", None, {**shard, **change})


@pytest.mark.parametrize("lost", [".offsets", ""])
def test_half_a_shard_is_not_deleted(folder: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / f"x-1.tar{lost}").unlink()
    there = {path.name for path in tmp_path.iterdir()}
    dataset = StreamingDataset(local=str(tmp_path), remote=str(folder), batch_size=1)
    assert {path.name for path in tmp_path.iterdir()} == there
    assert dataset[PER_SHARD]["json"] == {"id": PER_SHARD}


def test_an_index_apart_from_its_shards_survives_eviction(tmp_path: Path) -> None:
    tars, local = tmp_path / "tars", tmp_path / "index"
    index_tars(write_shards(tars), local)
    assert {path.suffix for path in tars.iterdir()} == {".tar"}
    dataset = StreamingDataset(streams=[Stream(local=str(local), remote=str(tars))], batch_size=1)
    for _ in range(2):
        assert [dataset[at]["json"]["id"] for at in range(NUM_SAMPLES)] == list(range(NUM_SAMPLES))
        used = dataset.cache_usage
        for _ in range(SHARDS):
            dataset.evict_coldest_shard()
        assert not list(local.glob("*.tar"))
        assert dataset.cache_usage == used - sum(path.stat().st_size for path in tars.iterdir())
    assert len(list(local.glob("*.offsets"))) == SHARDS
