from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ted_stream.pipelines.corpora.digits import prepare_digits

CLASSES = [f"class{index}" for index in range(10)]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "digits"
    prepare_digits(out)
    return out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As launched ranks have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cifar_tree(tmp_path) -> Path:
    """Three random images per class for training, one for testing, under a top folder."""
    rng = np.random.default_rng(0)
    tree = tmp_path / "tree" / "cifar10"
    for split, count in (("train", 3), ("test", 1)):
        for label in CLASSES:
            folder = tree / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:04}.png")
    return tree
