"""Made-up circumstances of a real corpus: fewer and smaller images, wrong labels, a long tail, samples that repeat."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.settings import check_number, check_whole

from .images import read_images, write_images
from .prepared import Description, new_dataset, read_description

__all__ = ["Regime", "write_regime"]


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How the training split of a corpus is changed; its test split stays as it is.

    Args:
        noise: share in [0, 1) of the labels that are replaced by another class, each as likely.
        tail: how many times as many samples the largest class has as the smallest: class c of C is left with a share
            tail^(-c / (C - 1)) of its samples (Cui et al., 2019); 1 leaves all.
        copies: how many times each sample is there.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    noise: float = 0.0
    tail: float = 1.0
    copies: int = 1

    def __post_init__(self) -> None:
        check_number("noise", self.noise, "[0, 1)", fix="it is the share of the labels that are replaced.")
        check_number("tail", self.tail, "[1, inf)", fix="it is how many times larger the largest class is.")
        if check_whole("copies", self.copies, fix="it is how many times each sample is there.") < 1:
            raise ValueError(f"copies is {self.copies}, but must be at least 1; 1 leaves each sample there once.")

    def rows(self, labels: NDArray[np.int64], classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The samples that are left, repeated: their numbers, ascending.

        Args:
            labels: (N,) classes from 0.
            classes: C, how many there are.
            rng: decides which samples of a class are left.
        """
        if self.tail > 1:
            left = []
            for number in range(classes):
                rows = rng.permutation(np.flatnonzero(labels == number))
                share = self.tail ** (-number / max(classes - 1, 1))
                left.append(rows[: max(1, round(share * len(rows)))])
            rows = np.sort(np.concatenate(left))
        else:
            rows = np.arange(len(labels))
        return np.repeat(rows, self.copies)

    def relabelled(self, labels: NDArray[np.int64], classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(N,) the labels, a share of them replaced."""
        wrong = rng.permutation(len(labels))[: round(self.noise * len(labels))]
        replaced = labels.copy()
        replaced[wrong] = (labels[wrong] + rng.integers(1, classes, size=len(wrong))) % classes
        return replaced


def write_regime(
    source: str | Path,
    out: str | Path,
    regime: Regime,
    *,
    samples: int | None = None,
    size: int | None = None,
    seed: int = 0,
    size_limit: int = 1 << 22,
) -> Description:
    """Write a prepared dataset of decoded images anew as a regime has it.

    Args:
        source: folder of the prepared dataset.
        out: of the new one.
        regime: what becomes of the training split.
        samples: of the training split, drawn before the regime changes them; by default all.
        size: side to scale all images down to, by the mean of the areas; by default they stay.
        seed: of every draw.
        size_limit: bytes per shard.

    Raises:
        FileExistsError: ``out`` is taken.
        ValueError: the source has no decoded images, fewer samples than asked for, or smaller images.
    """
    description = read_description(source)
    if description.kind != "images":
        raise ValueError(f"{source} holds {description.kind}; a regime is made of decoded images, such as cifar10.")
    if regime.noise and len(description.classes) < 2:
        raise ValueError(f"{source} has one class, so no label can be replaced by another; set noise to 0.")
    rng = np.random.default_rng([seed, 1])  # not that of the stored order, or wrong labels would come first
    images, labels, _ = read_images(Path(source) / "train")
    if samples is not None:
        if samples > len(labels):
            raise ValueError(f"samples is {samples}, but {source} has {len(labels)} to train on; ask for fewer.")
        chosen = np.sort(rng.permutation(len(labels))[:samples])
        images, labels = images[chosen], labels[chosen]
    classes = len(description.classes)
    rows = regime.rows(labels, classes, rng)
    # Copies of a sample share its label, wrong or not.
    labels = regime.relabelled(labels, classes, rng)[rows]
    test_images, test_labels, _ = read_images(Path(source) / "test")
    splits = {
        "train": (_scaled(images[rows], size), labels),
        "test": (_scaled(test_images, size), test_labels),
    }
    notes = {"source": str(source), "source_notes": dict(description.notes), "samples": samples, **asdict(regime)}
    with new_dataset(out) as folder:
        return write_images(
            folder,
            splits,
            name=description.name,
            classes=description.classes,
            size_limit=size_limit,
            seed=seed,
            notes=notes,
        )


def _scaled(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """(N, size, size[, C]) uint8, each pixel the mean of those that it stands for."""
    if size is None:
        return images
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    height, width = images.shape[1:3]
    if size > min(height, width):
        raise ValueError(f"size is {size}, but the images are {height} × {width}; they are only scaled down.")
    grey = images.ndim == 3
    pixels = torch.from_numpy(images[..., None] if grey else images).permute(0, 3, 1, 2)
    parts = [adaptive_avg_pool2d(part.float(), size).round().to(torch.uint8) for part in pixels.split(4096)]
    scaled = torch.cat(parts).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(scaled[..., 0] if grey else scaled)
