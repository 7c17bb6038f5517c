"""scikit-learn's 1,797 handwritten digits: real images that come with an installed package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .images import write_images
from .prepared import Description, new_dataset

__all__ = ["prepare_digits"]


def prepare_digits(
    out: str | Path, *, seed: int = 0, size_limit: int = 1 << 14, overwrite: bool = False
) -> Description:
    """Write digits as a prepared dataset: 80 % ``train``, 20 % ``test``, the same share of each class in both.

    Args:
        out: the dataset's folder.
        seed: of the split and of the stored order.
        size_limit: bytes per shard; the default gives several shards.
        overwrite: replace a finished dataset.

    Raises:
        FileExistsError: ``out`` is taken (see `new_dataset`).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    with new_dataset(out, overwrite=overwrite) as folder:
        digits = load_digits()  # pyright: ignore[reportAttributeAccessIssue]
        images = digits.images.astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
        labels = digits.target  # pyright: ignore[reportAttributeAccessIssue]
        train, test = train_test_split(
            np.arange(len(images)), test_size=0.2, stratify=labels, random_state=seed, shuffle=True
        )
        splits = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
        return write_images(
            folder,
            splits,
            name="digits",
            classes=[str(digit) for digit in range(10)],
            size_limit=size_limit,
            seed=seed,
            notes={"source": "sklearn.datasets.load_digits"},
            places={split: [(None, str(row)) for row in rows] for split, rows in (("train", train), ("test", test))},
            keys="index",
        )
