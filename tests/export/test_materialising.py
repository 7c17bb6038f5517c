"""Datasets of what a run kept: the same samples to the byte, in the same order, whoever reads them."""

import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from run_folders import random_masks, write_run
from streaming import MDSWriter, Stream, StreamingDataset
from tars import NUM_SAMPLES, write_shards
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from typer.testing import CliRunner
from webdataset.compat import WebDataset

from ted_stream import (
    TED,
    FixedSubset,
    ImportanceSampling,
    PrunedSampler,
    PrunedStreamingDataset,
    Pruner,
    RandomPruning,
)
from ted_stream.cli.commands import app
from ted_stream.export import COPIES, Copied, Materialised, Selection, ShardCopy, materialise, write_origins
from ted_stream.export.materialising import METADATA
from ted_stream.export.stream_index import layout_of_index, read_index
from ted_stream.methods import Method
from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.reading.tar_index import index_tars
from ted_stream.skip_list import DatasetLayout, read_skip_list

N = 120
MASKS = random_masks(N, 3)
COLUMNS = {"x": "ndarray:float32:2,3", "tokens": "ndarray:uint16", "y": "int", "text": "str", "raw": "bytes"}


def sample(index: int) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    return {
        "x": rng.normal(size=(2, 3)).astype(np.float32),
        "tokens": rng.integers(0, 999, 1 + index % 4).astype(np.uint16),
        "y": index,
        "text": f"größe {index}" * (index % 3 + 1),
        "raw": rng.bytes(index % 5),
    }


def write_samples(folder: Path, indices: Iterable[int] = range(N), **options: Any) -> str:
    settings = {"columns": COLUMNS, "hashes": ["sha1", "xxh64"], "size_limit": 1500, **options}
    with MDSWriter(out=str(folder), **settings) as writer:
        for index in indices:
            writer.write({name: value for name, value in sample(index).items() if name in settings["columns"]})
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_samples(tmp_path_factory.mktemp("data") / "samples")
    write_origins(folder, ((f"img/{at}.png", None, at % 3) for at in range(N)), source="/corpus")
    return folder


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, layout_of(data), MASKS, scores=np.random.default_rng(1).normal(size=N).astype(np.float32))
    return folder


def layout_of(*folders: str) -> DatasetLayout:
    return DatasetLayout(streams=tuple(layout_of_index(read_index(folder)) for folder in folders))


def files_of(folder: Path | str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def kept_of(run: Path, epoch: int) -> str:
    return str(run / f"skip_lists/ep{epoch:04d}.parquet")


def raw_samples(folder: str) -> list[bytes]:
    """By stock streaming's reader, without decoding."""
    dataset = StreamingDataset(local=folder, batch_size=4)
    return [shard.get_sample_data(at) for shard in dataset.shards for at in range(shard.samples)]


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_samples_are_the_same_to_the_byte(run: Path, data: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    done = materialise(run, tmp_path / "kept", dataset=data, progress=lambda *news: told.append(news))
    ids = np.flatnonzero(MASKS[2])
    assert raw_samples(done.path) == [raw_samples(data)[at] for at in ids]
    stock = StreamingDataset(local=done.path, batch_size=4, validate_hash="xxh64")
    for at, kept in enumerate(ids.tolist()):
        same(stock[at], sample(kept))
    index, source = (json.loads(Path(folder, "index.json").read_text()) for folder in (done.path, data))
    for made, of in zip(index["shards"], source["shards"], strict=True):
        content = Path(done.path, made["raw_data"]["basename"]).read_bytes()
        assert made["raw_data"]["hashes"]["sha1"] == hashlib.sha1(content, usedforsecurity=False).hexdigest()
        changed = {name: value for name, value in made.items() if value != of[name]}
        assert changed.keys() == {"samples", "raw_data"}
    assert (done.kept, done.samples, done.epoch, done.weights) == (len(ids), N, 2, None)
    assert done.bytes == sum(made["raw_data"]["bytes"] for made in index["shards"])
    assert told[-1] == ("copy", len(ids), len(ids))
    assert not done.notes
    table = pq.read_table(f"{done.path}/origins.parquet")
    assert table["file"].to_pylist() == [f"img/{at}.png" for at in ids]
    assert table["label"].to_pylist() == [at % 3 for at in ids.tolist()]
    assert pq.read_metadata(f"{done.path}/origins.parquet").metadata[b"ted_stream.origins.source"] == b"/corpus"
    metadata = json.loads(Path(done.path, METADATA).read_text())
    expected = {"run": "r", "method": "TED", "epoch": 2, "kept": len(ids), "fingerprint": layout_of(data).fingerprint}
    assert expected.items() <= metadata.items()
    assert metadata["skip_list"] == read_skip_list(kept_of(run, 2)).digest


def test_all_samples_are_the_source_itself(run: Path, data: str, tmp_path: Path) -> None:
    materialise(run, tmp_path / "kept", dataset=data, selection=Selection(epoch=0))
    files, source = files_of(tmp_path / "kept"), files_of(data)
    assert {name: source[name] for name in source if name.endswith(".mds")}.items() <= files.items()
    assert files["index.json"] == source["index.json"]


@pytest.mark.parametrize("compression", ["zstd", "gz:1"])
def test_compressed_shards_stay_so(compression: str, run: Path, tmp_path: Path) -> None:
    data = write_samples(tmp_path / "zipped", compression=compression)
    write_run(tmp_path / "run", layout_of(data), MASKS)
    done = materialise(tmp_path / "run", tmp_path / "kept", dataset=data)
    assert not list(Path(done.path).glob("*.mds"))
    stock = StreamingDataset(remote=done.path, local=str(tmp_path / "cache"), batch_size=4, validate_hash="sha1")
    for at, kept in enumerate(np.flatnonzero(MASKS[2]).tolist()):
        same(stock[at], sample(kept))


# The order.


@pytest.mark.parametrize("algorithm", ["py1e", "py1s", "py1br", "py2s", "naive"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_order_is_that_of_the_skip_list(algorithm: str, nodes: int, run: Path, data: str, tmp_path: Path) -> None:
    done = materialise(run, tmp_path / "kept", dataset=data)
    options: dict[str, Any] = {"batch_size": 4, "num_canonical_nodes": nodes, "shuffle_algo": algorithm}
    options |= {"shuffle": True, "shuffle_seed": 3}
    pruned = PrunedStreamingDataset(local=data, skip_list=kept_of(run, 2), **options)
    copied = StreamingDataset(local=done.path, **options)
    orders = [[one["y"] for one in copied] for _ in range(3)]
    assert orders == [[one["y"] for one in pruned] for _ in range(3)]
    assert orders[0] != orders[1]
    assert sorted(set(orders[0])) == np.flatnonzero(MASKS[2]).tolist()


def test_shards_of_which_nothing_is_kept_are_left_out(data: str, tmp_path: Path) -> None:
    mask = MASKS[2].copy()
    layout = layout_of(data)
    second = int(layout.shard_offsets[1])
    mask[second : second + layout.shards[1].samples] = False
    write_run(tmp_path / "run", layout, [mask])
    done = materialise(tmp_path / "run", tmp_path / "kept", dataset=data)
    assert done.shards == layout.num_shards - 1
    assert done.notes[0].startswith(f"1 of {layout.num_shards} shards have no kept samples and are left out")
    found = StreamingDataset(local=done.path, batch_size=4)
    pruned = PrunedStreamingDataset(local=data, batch_size=4, skip_list=kept_of(tmp_path / "run", 0))
    assert [one["y"] for one in found] == [one["y"] for one in pruned] == np.flatnonzero(mask).tolist()


def test_the_order_of_a_sampler_is_that_of_the_skip_list(run: Path, data: str) -> None:
    listed = PrunedSampler(range(N), shuffle=True, seed=5, layout=layout_of(data), skip_list=kept_of(run, 2))
    ids = np.flatnonzero(MASKS[2])
    assert ids[list(PrunedSampler(range(len(ids)), shuffle=True, seed=5))].tolist() == list(listed)


# Training on it.

METHODS: dict[str, Method] = {
    "random": RandomPruning(0.5),
    "ted": TED(0.5),
    "importance_sampling": ImportanceSampling(0.5),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("digits") / "digits"
    prepare_digits(folder)
    return str(folder / "train")


class Flat(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.flatten(1).float() / 16)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return Flat(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def loader_of(local: str, **options: Any) -> DataLoader:
    dataset = PrunedStreamingDataset(local=local, batch_size=64, shuffle=True, num_canonical_nodes=1, **options)
    return DataLoader(dataset, batch_size=64)


def trained(loader: DataLoader, epochs: int = 3) -> list[float]:
    """The parameters after epochs with a schedule."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, epochs * len(loader))
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            cross_entropy(model(batch["image"]), batch["label"]).backward()
            optimizer.step()
            schedule.step()
    return parameters_of(model)


def pruned_training(loader: DataLoader, method: Method, folder: Path, epochs: int = 3) -> list[float]:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with Pruner(method, model, loader, epochs=epochs, folder=str(folder)) as pruner:
        for _ in pruner:
            for batch in pruner.batches():
                optimizer.zero_grad()
                pruner.loss(cross_entropy(model(batch["image"]), batch["label"])).backward()
                optimizer.step()
    return parameters_of(model)


def parameters_of(model: nn.Module) -> list[float]:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()


@pytest.mark.quick("random")
@pytest.mark.parametrize("name", METHODS)
def test_training_on_it_gives_the_weights_of_the_skip_list(name: str, digits: str, tmp_path: Path) -> None:
    pruned_training(loader_of(digits), METHODS[name], tmp_path / "run")
    done = materialise(tmp_path / "run", tmp_path / "kept", dataset=digits)
    assert done.kept < done.samples
    path = kept_of(tmp_path / "run", done.epoch or 0)
    if done.weights is None:
        assert trained(loader_of(done.path)) == trained(loader_of(digits, skip_list=path))
        return
    assert "FixedSubset(" in done.notes[0]
    assert done.weights in done.notes[0]
    listed = pruned_training(loader_of(digits), FixedSubset(path), tmp_path / "listed")
    assert pruned_training(loader_of(done.path), FixedSubset(done.weights), tmp_path / "copied") == listed
    alike = FixedSubset(done.weights, apply_weights=False)
    assert pruned_training(loader_of(done.path), alike, tmp_path / "alike") != listed
    plain = materialise(tmp_path / "run", tmp_path / "plain", dataset=digits, weights=False)
    assert plain.weights is None
    assert "weights of its samples in the loss are left out" in plain.notes[0]
    assert trained(loader_of(plain.path)) == trained(
        loader_of(digits, skip_list=read_skip_list(path).without_weights())
    )
    for to in ("webdataset", "hf"):
        with pytest.raises(ValueError, match=r"weigh unlike each other .* --no-weights"):
            materialise(tmp_path / "run", tmp_path / to, to=to, dataset=digits)


# Other formats.


def test_parquet_is_read_by_datasets(run: Path, data: str, tmp_path: Path) -> None:
    done = materialise(run, tmp_path / "kept", to="hf", dataset=data)
    found = datasets.load_dataset(done.path, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(found, datasets.Dataset)
    ids = np.flatnonzero(MASKS[2]).tolist()
    assert len(found) == len(ids)
    assert found.features["y"] == datasets.Value("int64")
    assert found.features["tokens"] == datasets.List(datasets.Value("uint16"))
    for at, row in zip(ids, found.with_format("numpy"), strict=True):
        assert isinstance(row, dict)
        same({name: row[name] for name in COLUMNS}, sample(at))
        assert row["x"].dtype == np.float32


def test_images_are_images_and_digits_are_arrays(digits: str, tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((4, 4, 3), at, np.uint8)) for at in range(8)]
    with MDSWriter(out=str(tmp_path / "png"), columns={"image": "png", "meta": "json", "h": "float16"}) as writer:
        for at, picture in enumerate(pictures):
            writer.write({"image": picture, "meta": {"at": at}, "h": np.float16(at)})
    write_run(tmp_path / "run", layout_of(str(tmp_path / "png")), [np.arange(8) > 5])
    done = materialise(tmp_path / "run", tmp_path / "kept", to="hf", dataset=tmp_path / "png")
    found: Any = datasets.load_dataset(done.path, split="train", cache_dir=str(tmp_path / "cache"))
    assert [np.asarray(row["image"]).tolist() for row in found] == [np.asarray(p).tolist() for p in pictures[6:]]
    assert [json.loads(row["meta"]) for row in found] == [{"at": 6}, {"at": 7}]
    done = materialise(tmp_path / "run", tmp_path / "tars", to="webdataset", dataset=tmp_path / "png")
    pipeline: Any = WebDataset(f"{done.path}/shard.00000.tar", shardshuffle=False).decode("pil")
    rows = list(pipeline)
    assert [np.asarray(row["image.png"]).tolist() for row in rows] == [np.asarray(p).tolist() for p in pictures[6:]]
    assert [(row["meta.json"], row["h.json"]) for row in rows] == [({"at": 6}, 6.0), ({"at": 7}, 7.0)]


def test_tars_of_columns_are_read_by_webdataset(run: Path, data: str, tmp_path: Path) -> None:
    done = materialise(run, tmp_path / "kept", to="webdataset", dataset=data)
    paths = sorted(map(str, Path(done.path).glob("*.tar")))
    pipeline: Any = WebDataset(paths, shardshuffle=False).decode()
    rows = list(pipeline)
    ids = np.flatnonzero(MASKS[2]).tolist()
    assert [row["__key__"] for row in rows] == [f"{at:012}" for at in ids]
    names = {"x": "x.npy", "tokens": "tokens.npy", "y": "y.cls", "text": "text.txt", "raw": "raw.bin"}
    for at, row in zip(ids, rows, strict=True):
        same({name: row[of] for name, of in names.items()}, sample(at))


def test_tars_stay_tars_to_the_byte(tmp_path: Path) -> None:
    index_tars(write_shards(tmp_path / "tars"))
    mask = np.random.default_rng(0).random(NUM_SAMPLES) < 0.4
    write_run(tmp_path / "run", layout_of(str(tmp_path / "tars")), [mask])
    done = materialise(tmp_path / "run", tmp_path / "kept", to="webdataset", dataset=tmp_path / "tars")

    def read(folder: Path | str) -> list[dict[str, Any]]:
        paths = sorted(map(str, Path(folder).glob("*.tar")))
        places = ("__url__", "__local_path__")
        rows = WebDataset(paths, shardshuffle=False)
        return [{name: value for name, value in row.items() if name not in places} for row in rows]

    assert read(done.path) == [row for row, keep in zip(read(tmp_path / "tars"), mask, strict=True) if keep]
    assert index_tars(f"{done.path}/x-{{0..3}}.tar").samples == done.kept == mask.sum()
    pruned = PrunedStreamingDataset(
        local=str(tmp_path / "tars"), batch_size=4, shuffle=True, skip_list=kept_of(tmp_path / "run", 0)
    )
    copied = PrunedStreamingDataset(local=done.path, batch_size=4, shuffle=True)
    assert [row["__key__"] for row in copied] == [row["__key__"] for row in pruned]
    for to, other in (("mds", "--to webdataset copies tars"), ("hf", "load_dataset..webdataset")):
        with pytest.raises(ValueError, match=other):
            materialise(tmp_path / "run", tmp_path / to, to=to, dataset=tmp_path / "tars")


@pytest.mark.parametrize(
    ("columns", "row", "to", "told"),
    [
        ({"a": "pkl"}, {"a": 1}, "hf", r"nothing for the columns a \(pkl\)"),
        ({"a": "pkl"}, {"a": 1}, "webdataset", r"nothing for the columns a \(pkl\)"),
        ({"a.b": "int"}, {"a.b": 1}, "webdataset", "column 'a.b' cannot be an extension"),
        ({"a": "int", "A": "int"}, {"a": 1, "A": 1}, "webdataset", "column 'a' cannot be an extension"),
        ({"a": "ndarray:int8"}, {"a": np.ones((2, 2), np.int8)}, "hf", r"'a' .* array of shape \(2, 2\)"),
    ],
)
def test_columns_without_a_counterpart_are_refused(
    columns: dict[str, str], row: dict[str, Any], to: str, told: str, tmp_path: Path
) -> None:
    with MDSWriter(out=str(tmp_path / "data"), columns=columns) as writer:
        writer.write(row)
        writer.write(row)
    write_run(tmp_path / "run", layout_of(str(tmp_path / "data")), [np.array([True, False])])
    with pytest.raises(ValueError, match=told):
        materialise(tmp_path / "run", tmp_path / "out", to=to, dataset=tmp_path / "data")
    assert not (tmp_path / "out").exists()
    materialise(tmp_path / "run", tmp_path / "mds", dataset=tmp_path / "data")  # whatever the columns


# Several streams, and object storage.


def test_streams_stay_streams(tmp_path: Path) -> None:
    folders = [
        write_samples(tmp_path / name, range(*of)) for name, of in (("a", (0, 40)), ("b", (40, 70)), ("c", (70, N)))
    ]
    mask = MASKS[2].copy()
    mask[40:70] = False
    weights = np.random.default_rng(0).random(int(mask.sum())).astype(np.float32) + 1
    write_run(tmp_path / "run", layout_of(*folders), [mask], weights=[weights])
    shutil.rmtree(folders[1])  # nothing of it is kept
    given = [folders[2], folders[0]]
    done = materialise(tmp_path / "run", tmp_path / "kept", dataset=given)
    copies = [f"{done.path}/stream-{at}" for at in (0, 2)]
    found = [one["y"] for folder in copies for one in StreamingDataset(local=folder, batch_size=4)]
    assert found == np.flatnonzero(mask).tolist()
    assert done.weights is not None
    np.testing.assert_array_equal(read_skip_list(done.weights, layout=layout_of(*copies)).weights_by_id(), weights)
    with pytest.raises(ValueError, match=r"kept samples are of stream \w+, 3 of 3 of the run, whose folder is not giv"):
        materialise(tmp_path / "run", tmp_path / "half", dataset=folders[0])
    with pytest.raises(ValueError, match="whose folder is not given: name it with --dataset"):
        materialise(tmp_path / "run", tmp_path / "half")


def test_the_order_of_streams_is_that_of_the_skip_list(tmp_path: Path) -> None:
    parts = {"a": range(60), "b": range(60, N)}
    folders = [write_samples(tmp_path / name, part) for name, part in parts.items()]
    write_run(tmp_path / "run", layout_of(*folders), MASKS)
    done = materialise(tmp_path / "run", tmp_path / "kept", dataset=folders)
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "num_canonical_nodes": 2}
    streams = [Stream(local=folder) for folder in folders]
    pruned = PrunedStreamingDataset(streams=streams, skip_list=kept_of(tmp_path / "run", 2), **options)
    copied = StreamingDataset(streams=[Stream(local=f"{done.path}/stream-{at}") for at in (0, 1)], **options)
    for _ in range(2):
        assert [one["y"] for one in copied] == [one["y"] for one in pruned]


def upload(s3: Any, folder: str, prefix: str) -> str:
    for name, content in files_of(folder).items():
        s3.put_object(Bucket="training", Key=f"{prefix}/{name}", Body=content)
    return f"s3://training/{prefix}"


@pytest.mark.long
def test_from_and_to_object_storage(run: Path, data: str, s3: Any, tmp_path: Path) -> None:
    local = materialise(run, tmp_path / "kept", dataset=data)
    remote = upload(s3, data, "data")
    copied = materialise(run, tmp_path / "from", dataset=remote)
    expected = files_of(local.path)
    assert {**files_of(copied.path), METADATA: b""} == {**expected, METADATA: b""}

    place = "s3://training/kept"
    stopped = RuntimeError("stopped")

    def some(function: Callable[[ShardCopy], Copied], copies: Iterable[ShardCopy]) -> Iterator[Copied]:
        yield function(next(iter(copies)))
        raise stopped

    with pytest.raises(RuntimeError, match="stopped"):
        materialise(run, place, dataset=data, map_shards=some)
    first = json.loads(expected["index.json"])["shards"][0]["raw_data"]["basename"]
    before = s3.head_object(Bucket="training", Key=f"kept/{first}")
    with pytest.raises(
        FileExistsError, match="unfinished exported dataset that differs in: epoch, kept, kept_samples, selection"
    ):
        materialise(run, place, dataset=data, selection=Selection(epoch=0))
    materialise(run, place, dataset=data)
    found = s3.list_objects_v2(Bucket="training", Prefix="kept/")["Contents"]
    names = {one["Key"].removeprefix("kept/") for one in found}
    assert {name for name in names if not name.startswith("_records/")} == expected.keys()
    for name, content in expected.items():
        assert s3.get_object(Bucket="training", Key=f"kept/{name}")["Body"].read() == content, name
    assert s3.head_object(Bucket="training", Key=f"kept/{first}")["LastModified"] == before["LastModified"]
    with pytest.raises(FileExistsError, match="holds a finished dataset"):
        materialise(run, place, dataset=data)
    with pytest.raises(FileExistsError, match="holds a dataset of another kind"):
        materialise(run, remote, dataset=data)
    with pytest.raises(ValueError, match="nothing is overwritten"):
        materialise(run, place, dataset=data, overwrite=True)
    s3.put_object(Bucket="training", Key=f"foreign/{first}", Body=b"somebody's")
    with pytest.raises(FileExistsError, match=f"{first} is there, and was not written by this export"):
        materialise(run, "s3://training/foreign", dataset=data)
    assert s3.get_object(Bucket="training", Key=f"foreign/{first}")["Body"].read() == b"somebody's"


# Interrupted, damaged, refused.


def interrupted(run: Path, data: str, out: Path, shards: int) -> Path:
    """Leave so many shards of an export behind, and say where."""

    def some(function: Callable[[ShardCopy], Copied], copies: Iterable[ShardCopy]) -> Iterator[Copied]:
        for copy, _ in zip(copies, range(shards), strict=False):
            yield function(copy)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise(run, out, dataset=data, map_shards=some)
    return out.with_name(f".{out.name}.unfinished")


def test_an_interrupted_export_goes_on(run: Path, data: str, tmp_path: Path) -> None:
    whole, out = materialise(run, tmp_path / "whole", dataset=data), tmp_path / "out"
    work = interrupted(run, data, out, whole.shards - 1)
    assert not out.exists()
    shards = sorted((work / "dataset").glob("*.mds"))
    records = sorted((work / "_records").glob("*.json"))
    assert len(shards) == len(records) == whole.shards - 1
    shards[0].write_bytes(shards[0].read_bytes()[:-1] + b"?")  # of the same size
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[2].unlink()
    (work / "dataset/.shard.00009.mds.0123456789abcdef.tmp").write_bytes(b"a killed process' last words")
    records[3].write_bytes(records[3].read_bytes()[:-9])
    left = {path: path.stat().st_ino for path in shards[4:]}
    with pytest.raises(FileExistsError, match="differs in: epoch, kept, kept_samples, selection, skip_list"):
        materialise(run, out, dataset=data, selection=Selection(epoch=1))
    with pytest.raises(FileExistsError, match="differs in: files, to"):
        materialise(run, out, dataset=data, to="hf")
    materialise(run, out, dataset=data)
    assert files_of(out) == files_of(whole.path)
    assert {path: (out / path.name).stat().st_ino for path in left} == left, "what was written is not written again"
    assert not work.exists()


@pytest.mark.long
@pytest.mark.parametrize("to", COPIES)
def test_a_killed_export_goes_on(to: str, tmp_path: Path) -> None:
    """Killed several times, with its workers, it is file by file what one is that was left alone."""
    count = 20_000
    data = write_samples(tmp_path / "data", range(count), size_limit=40_000, hashes=["sha1"])
    write_run(tmp_path / "run", layout_of(data), random_masks(count, 2))
    whole = materialise(tmp_path / "run", tmp_path / "whole", to=to, dataset=data)
    assert whole.shards > 30
    script, out, work = (
        Path(__file__).with_name("killed_materialising.py"),
        tmp_path / "out",
        tmp_path / ".out.unfinished",
    )
    written: list[set[Path]] = [set()]
    for after in (0.1, 0.5, 0.9):
        command = [sys.executable, str(script), str(tmp_path / "run"), str(out), data, to, str(after)]
        killed = subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=300)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
        written.append({path for path in (work / "dataset").rglob("*.*") if not path.name.endswith(".tmp")})
        assert written[-2] < written[-1]
    assert len(written[-1]) > 0.5 * whole.shards
    done = materialise(tmp_path / "run", out, to=to, dataset=data, workers=2)
    assert files_of(out) == files_of(whole.path)
    assert replace(done, path="") == replace(whole, path="")
    assert not work.exists()


def test_what_is_there_is_not_replaced(run: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds files that are no exported dataset"):
            materialise(run, out, dataset=data, overwrite=overwrite)
        with pytest.raises(ValueError, match="which is what is copied; name a place apart from it"):
            materialise(run, data, dataset=data, overwrite=overwrite)
    (out / "mine").unlink()
    with pytest.raises(ValueError, match="checkpoints is a file of the run itself"):
        materialise(run, run / "checkpoints", dataset=data)
    materialise(run, out, dataset=data)
    with pytest.raises(FileExistsError, match="finished dataset; pass --overwrite"):
        materialise(run, out, dataset=data, selection=Selection(epoch=1))
    materialise(run, out, dataset=data, selection=Selection(epoch=1), overwrite=True)
    assert len(raw_samples(str(out))) == MASKS[1].sum()
    interrupted(run, data, tmp_path / "other", 1)
    materialise(run, tmp_path / "other", dataset=data, selection=Selection(epoch=1), overwrite=True)
    assert files_of(tmp_path / "other") == files_of(out)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "another byte": (damaged, ValueError, r"has sha1 \w+, expected \w+: it is damaged"),
    "cut off": (lambda path: os.truncate(path, 100), ValueError, "has 100 bytes, its index says"),
    "missing": (Path.unlink, FileNotFoundError, "1 shards with kept samples are missing, .*shard.00002.mds first"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_are_refused(damage: str, run: Path, data: str, tmp_path: Path) -> None:
    harm, error, told = DAMAGE[damage]
    shutil.copytree(data, tmp_path / "data")
    harm(tmp_path / "data/shard.00002.mds")
    with pytest.raises(error, match=told):
        materialise(run, tmp_path / "out", dataset=tmp_path / "data")
    assert not (tmp_path / "out").exists()
    shutil.copy(f"{data}/shard.00002.mds", tmp_path / "data")
    materialise(run, tmp_path / "out", dataset=tmp_path / "data")


def test_a_damaged_compressed_shard_is_refused(tmp_path: Path) -> None:
    data = Path(write_samples(tmp_path / "data", compression="zstd"))
    write_run(tmp_path / "run", layout_of(str(data)), MASKS)
    path = data / "shard.00001.mds.zstd"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=r"shard.00001.mds.zstd cannot be decompressed .*: it is damaged"):
        materialise(tmp_path / "run", tmp_path / "out", dataset=data)


@pytest.mark.long
def test_shards_that_vanish_while_they_are_copied_are_named(run: Path, data: str, s3: Any, tmp_path: Path) -> None:
    remote = upload(s3, data, "data")
    s3.delete_object(Bucket="training", Key="data/shard.00001.mds")
    with pytest.raises(FileNotFoundError, match=r"data/shard.00001.mds, which holds kept samples, is missing"):
        materialise(run, tmp_path / "out", dataset=remote)


def test_a_full_disk_is_told(run: Path, data: str, tmp_path: Path) -> None:
    """A limit of the size of files stands for a full disk, which fails in the same way."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, before[1]))
        with pytest.raises(OSError, match=r"out cannot be written whole: .* the same command goes on"):
            materialise(run, tmp_path / "out", dataset=data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    materialise(run, tmp_path / "out", dataset=data)


def test_a_place_that_cannot_be_written_to_is_told(run: Path, data: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = command(run, "--to", "mds", "--out", str(tmp_path / "file/out"), "--dataset", data, code=1)
    assert f"{tmp_path / 'file'}" in done
    done = command(run, "--to", "mds", "--out", "/proc/out", "--dataset", data, code=1)
    assert "/proc/.out.unfinished: No such file or directory. Check the path" in done


def command(run: Path, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["export", str(run), "--workers", "1", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_the_command(run: Path, data: str, tmp_path: Path) -> None:
    told = command(run, "--to", "mds", "--out", str(tmp_path / "out"), "--dataset", data, "--epoch", "1")
    kept = int(MASKS[1].sum())
    assert f"{tmp_path / 'out'}: {kept} of {N} samples, which epoch 1 kept, in " in told
    assert len(raw_samples(str(tmp_path / "out"))) == kept
    told = command(run, "--to", "hf", "--out", str(tmp_path / "hf"), "--dataset", data, "--ratio", "0.25")
    assert f"30 of {N} samples, with the highest 0.25 of scores, in" in told
    assert "mds needs the folder" in command(run, "--to", "mds", code=1)
    refused = command(run, "--to", "mds", "--out", "x", "--all", code=1)
    assert "mds holds the samples that are kept; leave --all out" in refused


def test_results_that_are_lost_are_missed(run: Path, data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gave the results of 0 shards"):
        materialise(run, tmp_path / "out", dataset=data, map_shards=lambda function, copies: [])
    with pytest.raises(ValueError, match="no format 'arrow' of datasets; there is mds, webdataset, hf"):
        materialise(run, tmp_path / "out", dataset=data, to="arrow")


def elsewhere(function: Callable[[ShardCopy], Copied], copies: Iterable[ShardCopy]) -> Iterator[Copied]:
    """In another order, by what another process would be sent."""
    for copy in reversed([*copies]):
        of, sent = pickle.loads(pickle.dumps((function, copy)))
        yield of(sent)


def test_results_come_in_any_order(run: Path, data: str, tmp_path: Path) -> None:
    backwards = partial(materialise, run, dataset=data, map_shards=elsewhere)
    done: Materialised = backwards(tmp_path / "out")
    assert files_of(done.path) == files_of(materialise(run, tmp_path / "whole", dataset=data).path)
