"""Prepared datasets tell where each sample came from: its bytes are there."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from imagenet_sources import write_folders, write_shards, write_tar, write_tars
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoTokenizer
from webdataset.compat import WebDataset

from ted_stream import PrunedStreamingDataset
from ted_stream.export import find_origins
from ted_stream.pipelines.corpora.cifar import prepare_cifar
from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.pipelines.corpora.imagenet import prepare_imagenet
from ted_stream.pipelines.corpora.instructions import prepare_instructions

SPLITS = ("train", "test")


def samples_and_origins(split: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each sample with its origin, of a dataset whose layout they fit."""
    dataset = PrunedStreamingDataset(local=str(split), batch_size=1)
    origins, folders = find_origins(split, dataset.layout)
    assert (origins.known, folders) == (1, [str(split)])
    rows = pq.read_table(split / "origins.parquet").to_pylist()
    assert [batch.to_pylist() for batch in origins.batches()] == [rows]
    assert len(rows) == dataset.num_samples
    return [(dataset[at], row) for at, row in enumerate(rows)]


def key_kind(split: Path) -> str:
    return pq.read_schema(split / "origins.parquet").metadata[b"ted_stream.origins.key"].decode()


def test_digits_are_indices(digits: Path) -> None:
    corpus: Any = load_digits()
    seen = []
    for split in SPLITS:
        assert key_kind(digits / split) == "index"
        for sample, origin in samples_and_origins(digits / split):
            seen.append(int(origin["key"]))
            assert np.array_equal(sample["image"], corpus.images[seen[-1]])
            assert (origin["file"], origin["label"]) == (None, corpus.target[seen[-1]])
    assert sorted(seen) == list(range(1797))


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_cifar_from_a_folder(workers: int, cifar_tree: Path, tmp_path: Path) -> None:
    source = cifar_tree.parent
    prepare_cifar("cifar10", tmp_path / "out", source=source, workers=workers)
    for split in SPLITS:
        assert key_kind(tmp_path / "out" / split) == ""
        for sample, origin in samples_and_origins(tmp_path / "out" / split):
            assert np.array_equal(sample["image"], np.asarray(Image.open(source / origin["file"])))
            assert Path(origin["file"]).parent.name == f"class{origin['label']}"
            assert (origin["key"], origin["label"]) == (None, sample["label"])


def test_cifar_from_a_tar(cifar_tree: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(cifar_tree, "cifar10")
    prepare_cifar("cifar10", tmp_path / "out", source=tmp_path / "cifar.tar.gz")
    with tarfile.open(tmp_path / "cifar.tar.gz") as archive:
        for split in SPLITS:
            assert key_kind(tmp_path / "out" / split) == "member"
            for sample, origin in samples_and_origins(tmp_path / "out" / split):
                assert origin["file"] == "cifar.tar.gz"
                with Image.open(io.BytesIO(_member(archive, origin["key"]))) as image:
                    assert np.array_equal(sample["image"], np.asarray(image))


# ImageNet


def image_of(layout: str, source: Path, origin: dict[str, Any]) -> bytes:
    """The bytes of an origin, as its owner would get them."""
    if layout == "folders":
        assert origin["key"] is None
        return (source / origin["file"]).read_bytes()
    if layout == "shards":
        samples: Any = WebDataset(str(source / origin["file"]), shardshuffle=False)
        (found,) = [sample["jpg"] for sample in samples if sample["__key__"] == origin["key"]]
        return found
    with tarfile.open(source / origin["file"]) as archive:
        if origin["file"] == "ILSVRC2012_img_val.tar":
            return _member(archive, origin["key"])
        inner, _, name = origin["key"].partition("/")
        with tarfile.open(fileobj=io.BytesIO(_member(archive, inner))) as images:
            return _member(images, name)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


@pytest.mark.long
@pytest.mark.parametrize(("layout", "kind"), [("folders", ""), ("tars", "member"), ("shards", "webdataset")])
def test_imagenet(layout: str, kind: str, tmp_path: Path) -> None:
    source = folders = write_folders(tmp_path / "folders", per_class=6, test_per_class=2)
    if layout != "folders":
        source = {"tars": write_tars, "shards": write_shards}[layout](tmp_path / layout, folders)
    prepare_imagenet(tmp_path / "out", source, shard_size=6000)
    for split in SPLITS:
        assert key_kind(tmp_path / "out" / split) == kind
        for sample, origin in samples_and_origins(tmp_path / "out" / split):
            assert image_of(layout, source, origin) == sample["image"]
            assert origin["label"] == sample["label"]


def test_keys_of_tars_with_folders(tmp_path: Path) -> None:
    """WebDataset's key has the folder in it."""
    folders = write_folders(tmp_path / "folders", per_class=2, test_per_class=1)
    write_shards(tmp_path / "shards", folders)
    for path in (tmp_path / "shards").glob("*.tar"):
        with tarfile.open(path) as archive:
            members = [(f"a.b/{member.name}", _member(archive, member.name)) for member in archive]
        write_tar(path, members)
    prepare_imagenet(tmp_path / "out", tmp_path / "shards")
    for sample, origin in samples_and_origins(tmp_path / "out" / "train"):
        assert origin["key"].startswith("a.b/n")
        assert image_of("shards", tmp_path / "shards", origin) == sample["image"]


# Instructions


@pytest.mark.long
@pytest.mark.parametrize("as_array", [False, True])
def test_instructions_are_lines_or_items(as_array: bool, tmp_path: Path) -> None:
    records = [{"prompt": f"What is {at}?" * (1 + 30 * (at % 5 == 0)), "response": f"It is {at}."} for at in range(30)]
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(record) for record in records]
    lines.insert(3, "")  # a blank line counts as a line
    path.write_text(json.dumps(records) if as_array else "\n".join(lines))
    # Every fifth prompt alone fills a sample, and is left out.
    prepare_instructions(
        tmp_path / "out", path, test_fraction=0.2, train_tokenizer_size=300, max_length=60, skip_bad=True
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    seen = 0
    for split in SPLITS:
        assert key_kind(tmp_path / "out" / split) == ("item" if as_array else "line")
        for sample, origin in samples_and_origins(tmp_path / "out" / split):
            number, seen = int(origin["key"]), seen + 1
            record = records[number - 1] if as_array else json.loads(path.read_text().split("\n")[number - 1])
            text = tokenizer.decode(sample["input_ids"], skip_special_tokens=True)
            assert text == f"{record['prompt']}\n{record['response']}"
            assert (origin["file"], origin["label"]) == ("train.jsonl", None)
    assert seen == 24


def test_origins_of_remade_data_are_refused(digits: Path, tmp_path: Path) -> None:
    """Their shards have the same names, sizes and counts."""
    prepare_digits(tmp_path / "other", seed=1)
    shutil.copy(digits / "train/origins.parquet", tmp_path / "other/train/origins.parquet")
    layout = PrunedStreamingDataset(local=str(tmp_path / "other/train"), batch_size=1).layout
    with pytest.raises(ValueError, match=r"origins\.parquet is of shards with fingerprint .* was made anew since"):
        find_origins(tmp_path / "other", layout)
    layout = PrunedStreamingDataset(local=str(digits / "train"), batch_size=1).layout
    with pytest.raises(ValueError, match=r"the content of .* differs"):
        find_origins(tmp_path / "other", layout)
