import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from streaming import StreamingDataset

from ted_stream import PrunedStreamingDataset, SkipList, SkipListError
from ted_stream.pipelines.corpora.cifar import prepare_cifar
from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.pipelines.corpora.prepared import DESCRIPTION_FILE, new_dataset, read_description
from ted_stream.pipelines.training.in_memory import ImagesInMemory


def read_split(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    dataset = StreamingDataset(local=str(folder), batch_size=1)
    samples = [dataset[index] for index in range(dataset.num_samples)]
    return np.stack([s["image"] for s in samples]), np.array([s["label"] for s in samples])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def make_tar(tree: Path, target: Path) -> Path:
    with tarfile.open(target, "w:xz") as archive:
        archive.add(tree, tree.name)
    return target


def test_digits_round_trip(digits):
    corpus = load_digits()
    expected = corpus.images.astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    train, test = read_split(digits / "train"), read_split(digits / "test")
    assert len(list((digits / "train").glob("*.mds"))) > 3
    assert len(train[0]) == 1437
    assert len(test[0]) == 360
    images = np.concatenate([train[0], test[0]])
    assert images.dtype == np.uint8
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected))
    share = np.bincount(test[1]) / np.bincount(np.concatenate([train[1], test[1]]))
    assert np.abs(share - 0.2).max() < 0.01


def test_digits_description(digits):
    description = read_description(str(digits))
    images, _ = read_split(digits / "train")
    assert description.shape == (8, 8)
    assert description.samples == {"train": 1437, "test": 360}
    assert description.mean == pytest.approx([images.mean()])
    assert description.std == pytest.approx([images.std()])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(digits, tmp_path):
    prepare_digits(tmp_path / "again")
    prepare_digits(tmp_path / "other", seed=1)
    assert files_of(tmp_path / "again") == files_of(digits)
    assert files_of(tmp_path / "other") != files_of(digits)


def test_a_list_of_digits_in_another_order_is_refused(digits, tmp_path):
    """Their shards have the same names, sizes and counts."""
    prepare_digits(tmp_path / "again")
    prepare_digits(tmp_path / "other", seed=1)
    mine, again, other = (
        PrunedStreamingDataset(local=str(folder / "train"), batch_size=8).layout
        for folder in (digits, tmp_path / "again", tmp_path / "other")
    )
    assert mine.shape == other.shape
    assert mine.fingerprint == again.fingerprint != other.fingerprint
    names = {"epoch": 0, "keep_ratio": 0.9, "method": "random", "run": "r"}
    skip_list = SkipList.from_pruned_ids(mine, np.arange(100), **names)
    with pytest.raises(SkipListError, match=r"sample counts, but the content of \d+ of \d+ differs"):
        PrunedStreamingDataset(local=str(tmp_path / "other" / "train"), batch_size=8, skip_list=skip_list)
    # In memory it is the same dataset.
    assert ImagesInMemory(str(digits / "train")).layout == mine


@pytest.mark.long
def test_folder_and_tar_and_worker_counts_give_the_same_dataset(cifar_tree, tmp_path):
    archive = make_tar(cifar_tree, tmp_path / "cifar.tar.xz")
    prepare_cifar("cifar10", tmp_path / "a", source=cifar_tree)
    prepare_cifar("cifar10", tmp_path / "b", source=archive)
    prepare_cifar("cifar10", tmp_path / "c", source=cifar_tree, workers=2)
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    for other in (b, c):
        assert a.keys() == other.keys()
        names_its_source = {DESCRIPTION_FILE, *(f"{split}/origins.parquet" for split in ("train", "test"))}
        assert all(a[name] == other[name] for name in a.keys() - (names_its_source if other is b else set()))
    images, labels = read_split(tmp_path / "a" / "train")
    description = read_description(str(tmp_path / "a"))
    assert sorted(labels) == sorted(list(range(10)) * 3)
    assert list(labels) != sorted(labels), "the stored order must mix classes"
    for image, label in zip(images, labels, strict=True):
        folder = cifar_tree / "train" / description.classes[label]
        assert any(np.array_equal(np.asarray(Image.open(file)), image) for file in folder.iterdir())
    assert description.mean == pytest.approx(images.mean((0, 1, 2)))
    assert description.std == pytest.approx(images.std((0, 1, 2)))


def test_a_finished_dataset_is_replaced_only_when_told(tmp_path):
    out = tmp_path / "digits"
    prepare_digits(out)
    before = files_of(out)
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_digits(out, seed=1)
    assert files_of(out) == before
    prepare_digits(out, seed=1, overwrite=True)
    assert files_of(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["digits"], "nothing may be left beside it"


def test_a_folder_of_other_files_is_never_replaced(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="no prepared dataset"):
        prepare_digits(tmp_path, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_an_interrupted_preparation_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with new_dataset(tmp_path / "out") as folder:
            (folder / "index.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/train/a/x.png", "../train/a/x.png", "top/../../train/a/x.png"])
def test_unsafe_member_names_are_refused(name, tmp_path):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(ValueError, match="unsafe member name"):
        prepare_cifar("cifar10", tmp_path / "out", source=archive)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar"]


def test_links_in_a_tar_are_refused(tmp_path):
    archive = tmp_path / "links.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("train/a/x.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match="as a link"):
        prepare_cifar("cifar10", tmp_path / "out", source=archive)


def test_what_is_wrong_with_a_source_is_named(cifar_tree, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare_cifar("cifar10", out, source=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images of train/<class>"):
        prepare_cifar("cifar10", out, source=tmp_path / "empty")
    (tmp_path / "not.tar").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"not\.tar cannot be read as a tar"):
        prepare_cifar("cifar10", out, source=tmp_path / "not.tar")
    Image.new("RGB", (8, 8)).save(cifar_tree / "train" / "class0" / "small.png")
    with pytest.raises(ValueError, match=r"class0/small\.png: it is 8×8"):
        prepare_cifar("cifar10", out, source=cifar_tree)
    (cifar_tree / "train" / "class0" / "small.png").unlink()
    shutil.rmtree(cifar_tree / "test" / "class3")
    with pytest.raises(ValueError, match="only one of train and test: class3"):
        prepare_cifar("cifar10", out, source=cifar_tree)
    assert not out.exists()


def test_an_unexpected_number_of_classes_is_a_warning(cifar_tree, tmp_path):
    with pytest.warns(UserWarning, match="has 10 classes; cifar100 has 100"):
        prepare_cifar("cifar100", tmp_path / "out", source=cifar_tree)


def test_a_description_of_another_version_is_refused(digits, tmp_path):
    raw = json.loads((digits / DESCRIPTION_FILE).read_text())
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps({**raw, "format": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        read_description(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="ted-stream prepare"):
        read_description(str(tmp_path / "nothing"))
