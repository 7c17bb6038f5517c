from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ted_stream.pipelines.corpora.images import write_images
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.corpora.regimes import Regime, write_regime

CLASSES, PER_CLASS, SIDE = 4, 100, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose first pixel is their class, and whose next two are their number."""
    folder = tmp_path_factory.mktemp("source")
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    images[:, 0, 0, 1], images[:, 0, 0, 2] = np.arange(len(labels)) // 256, np.arange(len(labels)) % 256
    splits = {"train": (images, labels), "test": (images[:40], labels[:40])}
    names = [f"class{number}" for number in range(CLASSES)]
    write_images(folder, splits, name="made up", classes=names, size_limit=1 << 14, seed=0, notes={})
    return folder


def read(folder: Path, split: str = "train") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from streaming import LocalDataset

    shards: Any = LocalDataset(str(folder / split))
    samples = [shards[at] for at in range(len(shards))]
    return np.stack([sample["image"] for sample in samples]), np.array([sample["label"] for sample in samples])


def numbers(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    return images[:, 0, 0, 1].astype(np.int64) * 256 + images[:, 0, 0, 2]


def test_a_share_of_the_labels_is_replaced_by_others(source: Path, tmp_path: Path) -> None:
    write_regime(source, tmp_path / "out", Regime(noise=0.3), seed=1)
    images, labels = read(tmp_path / "out")
    wrong = labels != images[:, 0, 0, 0]
    assert wrong.sum() == round(0.3 * CLASSES * PER_CLASS)
    assert len({*labels[wrong]}) == CLASSES
    assert 30 <= wrong[:200].sum() <= 90, "spread over the stored order"  # 60 ± 6.5
    assert np.array_equal(np.sort(numbers(images)), np.arange(CLASSES * PER_CLASS))
    test_images, test_labels = read(tmp_path / "out", "test")
    assert np.array_equal(test_labels, test_images[:, 0, 0, 0])  # what is tested on stays as it is
    assert len(test_labels) == 40


def test_a_long_tail_has_its_ratio(source: Path, tmp_path: Path) -> None:
    description = write_regime(source, tmp_path / "out", Regime(tail=8.0))
    images, labels = read(tmp_path / "out")
    assert np.bincount(labels).tolist() == [100, 50, 25, 12]  # 100 · 8^(-c / 3), rounded to even
    assert np.array_equal(labels, images[:, 0, 0, 0])
    assert len({*numbers(images)}) == len(labels) == description.samples["train"]


def test_copies_share_their_label(source: Path, tmp_path: Path) -> None:
    write_regime(source, tmp_path / "out", Regime(copies=3, noise=0.5), samples=50)
    images, labels = read(tmp_path / "out")
    found = numbers(images)
    assert {int(count) for count in np.bincount(found) if count} == {3}
    assert len({*zip(found.tolist(), labels.tolist(), strict=True)}) == 50


def test_images_are_scaled_by_means(source: Path, tmp_path: Path) -> None:
    description = write_regime(source, tmp_path / "out", Regime(), size=4)
    images, _ = read(tmp_path / "out", "test")
    before, _ = read(source, "test")
    means = before.reshape(-1, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert description.shape == images.shape[1:] == (4, 4, 3)
    order = [np.abs(means - image).reshape(len(means), -1).max(1).argmin() for image in images]
    assert sorted(order) == list(range(40))
    assert np.abs(images - means[order]).max() <= 0.5


def test_the_seed_decides(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_regime(source, tmp_path / name, Regime(noise=0.2, tail=4.0), samples=300, seed=seed)
    (first, second), (again, too), (other, _) = (read(tmp_path / name) for name in "abc")
    assert np.array_equal(first, again)
    assert np.array_equal(second, too)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert read_description(tmp_path / "a").notes["noise"] == 0.2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"noise": 1.0}, r"noise is 1\.0, but it must lie in \[0, 1\)"),
        ({"tail": 0.5}, r"tail is 0\.5, but it must lie in \[1, inf\)"),
        ({"copies": 0}, "copies is 0, but must be at least 1"),
    ],
)
def test_impossible_regimes_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Regime(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"samples": 1000}, "samples is 1000, but"), ({"size": 9}, "size is 9, but the images are 8 × 8")],
)
def test_what_the_source_does_not_have_is_refused(
    source: Path, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        write_regime(source, tmp_path / "out", Regime(), **given)
    assert not (tmp_path / "out").exists()
