"""Plain WebDataset pipelines leave out what a skip-list prunes, and nothing else."""

import gzip
import io
import pickle
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tars import NUM_SAMPLES, PER_SHARD, SHARDS, write_shards, write_tar
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset
from webdataset.filters import batched, decode, shuffle, to_tuple
from webdataset.handlers import warn_and_continue
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import ResampledShards, SimpleShardList, split_by_worker

from ted_stream import PrunedStreamingDataset, SkipList, write_skip_list
from ted_stream.reading.drop_pruned import drop_pruned
from ted_stream.reading.tar_index import index_tars
from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout

URLS = "x-{0..3}.tar"
# A whole shard, and every third sample.
PRUNED = np.union1d(np.arange(0, NUM_SAMPLES, 3), np.arange(PER_SHARD, 2 * PER_SHARD))
KEPT = sorted(set(range(NUM_SAMPLES)) - set(PRUNED.tolist()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    index_tars(write_shards(folder))
    return folder


def skip_list_of(layout: DatasetLayout, pruned: Any = PRUNED) -> SkipList:
    return SkipList.from_pruned_ids(layout, pruned, epoch=0, keep_ratio=0.5, method="test", run="test")


@pytest.fixture(scope="module")
def skip_list(folder: Path) -> SkipList:
    return skip_list_of(PrunedStreamingDataset(local=str(folder), batch_size=1).layout)


def layout_of(**samples: int) -> DatasetLayout:
    shards = tuple(ShardLayout(name=f"{name}.tar", size=1, samples=count) for name, count in samples.items())
    return DatasetLayout(streams=(StreamLayout(shards=shards),))


def ids(samples: Any) -> list[int]:
    return [int(sample["__key__"].rpartition("/")[2]) for sample in samples]


def of_samples(folder: Path, *stages: Any, urls: Any = None, **arguments: Any) -> DataPipeline:
    return WebDataset(urls or str(folder / URLS), shardshuffle=False, **arguments).compose(*stages)


def of_shards(folder: Path, *stages: Any, urls: Any = None) -> DataPipeline:
    return DataPipeline(SimpleShardList(urls or str(folder / URLS)), split_by_worker, *stages)


FORMS = pytest.mark.parametrize("form", [of_samples, of_shards])


@FORMS
def test_kept_samples_are_those_of_the_streaming_dataset(
    folder: Path, skip_list: SkipList, tmp_path: Path, form: Any
) -> None:
    dataset = PrunedStreamingDataset(local=str(folder), batch_size=1)
    expected = [dataset[sample_id] for sample_id in skip_list.kept_ids()]
    write_skip_list(skip_list, tmp_path / "list.parquet")
    for given in (skip_list, str(tmp_path / "list.parquet"), tmp_path / "list.parquet"):
        found = list(form(folder, drop_pruned(given), decode("pil")))
        assert ids(found) == KEPT
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() - {"__url__", "__local_path__"} == theirs.keys()
            assert (ours["__key__"], ours["json"], ours["cls"]) == (theirs["__key__"], theirs["json"], theirs["cls"])
            assert np.array_equal(ours["png"], theirs["png"])


def test_weights_that_nobody_would_apply_are_refused(skip_list: SkipList) -> None:
    weighted = replace(skip_list, weights=np.full(skip_list.num_kept, 2, np.float32))
    with pytest.raises(ValueError, match=r"drop_pruned has no loss .*without_weights\(\)"):
        drop_pruned(weighted)
    drop_pruned(weighted.without_weights())


@FORMS
def test_shards_may_be_split_shuffled_and_repeated(folder: Path, skip_list: SkipList, form: Any) -> None:
    stage = pickle.loads(pickle.dumps(drop_pruned(skip_list)))
    loader = DataLoader(form(folder, stage), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(ids(loader)) == KEPT
    urls = [str(folder / f"x-{shard}.tar") for shard in (2, 0, 1, 1, 2, 2)]
    shard_of = [[index for index in KEPT if index // PER_SHARD == shard] for shard in range(SHARDS)]
    expected = [index for shard in (2, 0, 1, 1, 2, 2) for index in shard_of[shard]]
    assert ids(form(folder, stage, urls=urls)) == expected
    assert ids(form(folder, stage).repeat(2)) == KEPT * 2


def test_resampled_shards(folder: Path, skip_list: SkipList) -> None:
    urls = str(folder / URLS)
    for dataset in (
        WebDataset(urls, resampled=True).compose(drop_pruned(skip_list)),
        DataPipeline(ResampledShards(urls, seed=1), drop_pruned(skip_list)),
    ):
        assert set(ids(islice(dataset, 500))) == set(KEPT)


@FORMS
def test_stopping_early_is_no_error(folder: Path, skip_list: SkipList, form: Any) -> None:
    assert ids(islice(form(folder, drop_pruned(skip_list)), 20)) == KEPT[:20]
    assert ids(form(folder, drop_pruned(skip_list)).with_epoch(50)) == (KEPT * 2)[:50]
    iterator = iter(form(folder, drop_pruned(skip_list)))
    next(iterator)
    del iterator


@FORMS
def test_everything_or_nothing(folder: Path, form: Any) -> None:
    layout = PrunedStreamingDataset(local=str(folder), batch_size=1).layout
    assert ids(form(folder, drop_pruned(skip_list_of(layout, [])))) == list(range(NUM_SAMPLES))
    assert ids(form(folder, drop_pruned(skip_list_of(layout, range(NUM_SAMPLES))))) == []
    assert list(drop_pruned(skip_list_of(layout, []))([])) == []


def test_pruned_bytes_are_not_read(tmp_path: Path) -> None:
    size, count = 100_000, 30
    files = {}
    for index in range(count):
        files |= {f"{index:03}.bin": random.Random(index).randbytes(size), f"{index:03}.cls": b"1"}
    path = write_tar(tmp_path / "x.tar", files)
    pruned = [index for index in range(count) if index % 10]
    stage = drop_pruned(skip_list_of(layout_of(x=count), pruned))

    class Counting(io.FileIO):
        read_bytes = 0

        def read(self, size: int | None = -1, /) -> Any:
            data = super().read(-1 if size is None else size)
            self.read_bytes += len(data or b"")
            return data

    class Unseekable(Counting):
        def seekable(self) -> bool:
            return False

    for opened, at_least, at_most in (
        (Counting(path), 3 * size, 3 * size + count * 2 * 2000),
        (Unseekable(path), count * size, path.stat().st_size),
    ):
        found = list(stage([{"url": str(path), "stream": opened}]))
        assert [(sample["__key__"], sample["bin"]) for sample in found] == [
            (f"{index:03}", files[f"{index:03}.bin"]) for index in (0, 10, 20)
        ]
        assert at_least <= opened.read_bytes <= at_most
        assert opened.closed


def test_shards_through_commands_and_compression(folder: Path, skip_list: SkipList, tmp_path: Path) -> None:
    shard = folder / "x-2.tar"
    kept = [index for index in KEPT if index // PER_SHARD == 2]
    url = f"pipe:cat {shard} | cat -"
    assert ids(of_shards(folder, drop_pruned(skip_list), urls=[url])) == kept
    assert ids(of_samples(folder, drop_pruned(skip_list), urls=[url])) == kept
    assert ids(islice(of_shards(folder, drop_pruned(skip_list), urls=[url]), 3)) == kept[:3]
    (tmp_path / "x-2.tar").write_bytes(gzip.compress(shard.read_bytes()))
    assert ids(of_shards(folder, drop_pruned(skip_list), urls=[str(tmp_path / "x-2.tar")])) == kept


@FORMS
def test_an_unknown_shard_is_named(folder: Path, form: Any) -> None:
    stage = drop_pruned(skip_list_of(layout_of(a=20, b=20, c=20, d=20), [3]))
    with pytest.raises(ValueError, match=r"shard .*/x-0\.tar is not of this skip-list.* 4 shards: a\.tar, b\.tar, c"):
        list(form(folder, stage))


@FORMS
@pytest.mark.parametrize(("samples", "message"), [(19, "has 20 samples or more.* 19"), (21, "20 of the 21 samples")])
def test_another_number_of_samples_is_refused(folder: Path, form: Any, samples: int, message: str) -> None:
    for shard in range(SHARDS):  # also where another one follows, and at the end
        counts = {f"x-{at}": samples if at == shard else PER_SHARD for at in range(SHARDS)}
        with pytest.raises(ValueError, match=rf"Shard x-{shard}\.tar.*{message}"):
            list(form(folder, drop_pruned(skip_list_of(layout_of(**counts), []))))


def test_twice_the_samples_are_no_second_pass(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"{index}.txt": b"" for index in range(6)})
    urls = [str(tmp_path / "x.tar")]
    for form in (of_samples, of_shards):
        with pytest.raises(ValueError, match=r"x\.tar has 4 samples or more"):
            list(form(folder, drop_pruned(skip_list_of(layout_of(x=3), [])), urls=urls))


@FORMS
def test_equal_keys_in_two_shards_are_two_samples(tmp_path: Path, form: Any) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", {"7.txt": name.encode()})
    stage = drop_pruned(skip_list_of(layout_of(a=1, b=1), []))
    urls = [str(tmp_path / f"{name}.tar") for name in "aab"]
    assert [sample["txt"] for sample in form(tmp_path, stage, urls=urls)] == [b"a", b"a", b"b"]


def test_stages_in_the_wrong_order_are_refused(folder: Path, skip_list: SkipList) -> None:
    stage = drop_pruned(skip_list)
    for wrong in (shuffle(100, initial=50, rng=random.Random(0)), lambda samples: islice(samples, 30)):
        with pytest.raises(ValueError, match=r"in front of whatever shuffles"):
            list(of_samples(folder, wrong, stage))
    for wrong, given in (
        (to_tuple("png"), "a tuple"),
        (batched(4), "a dict of|a list|a tuple"),
        (lambda samples: ({"png": sample["png"]} for sample in samples), "a dict of 'png'"),
    ):
        with pytest.raises(ValueError, match=rf"given ({given}).*to_tuple"):
            list(of_samples(folder, wrong, stage))


@FORMS
@pytest.mark.filterwarnings("ignore")  # the handler's
def test_broken_shards_are_not_passed_over(folder: Path, skip_list: SkipList, tmp_path: Path, form: Any) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    arguments = {"handler": warn_and_continue} if form is of_samples else {}
    data = (folder / "x-3.tar").read_bytes()
    cut, header = data[: len(data) // 2], data[: 512 * 12] + b"\xff" * 512 + data[512 * 13 :]
    for damaged in (cut, header):
        (tmp_path / "x-3.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x-3\.tar (ended after|cannot be read)"):
            list(form(tmp_path, drop_pruned(skip_list), **arguments))
    (tmp_path / "x-3.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"x-3\.tar cannot be read as a tar"):
        list(of_shards(tmp_path, drop_pruned(skip_list)))


def test_shards_of_one_name_are_refused() -> None:
    stream = layout_of(x=3).streams[0]
    with pytest.raises(ValueError, match=r"several shards named x\.tar"):
        drop_pruned(skip_list_of(DatasetLayout(streams=(stream, stream)), []))


def test_samples_are_taken_only_as_needed(folder: Path, skip_list: SkipList) -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield from WebDataset(str(folder / URLS), shardshuffle=False)

    assert ids(islice(drop_pruned(skip_list)(endless()), len(KEPT) + 1)) == [*KEPT, KEPT[0]]
