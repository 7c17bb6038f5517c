"""Workers beside a process group come from a server, and read what forked ones read."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.training.datasets import Loaders, build_loaders
from ted_stream.pipelines.training.image_batches import DecodeJpeg
from ted_stream.pipelines.training.settings import load_settings
from ted_stream.pipelines.training.text_batches import PaddingCollator

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def loaders(digits: Path, *, ranks: int, batch_size: int) -> Loaders:
    sizes = [f"data.batch_size={batch_size}", f"data.eval_batch_size={batch_size}"]
    settings = load_settings(QUICKSTART, [f"data.path={digits}", "data.num_workers=1", *sizes])
    return build_loaders(settings, read_description(str(digits)), ranks=ranks)


def start_method(loader: DataLoader) -> str | None:
    context: Any = loader.multiprocessing_context
    return None if context is None else context.get_start_method()


@pytest.mark.long
def test_workers_of_several_ranks_are_not_forked_from_them(digits: Path) -> None:
    """Where a fork may leave one that never starts; elsewhere they start as all others."""
    server = "forkserver" if sys.version_info < (3, 12) and sys.platform == "linux" else None
    alone, shared = loaders(digits, ranks=1, batch_size=8), loaders(digits, ranks=2, batch_size=16)
    for name in ("train", "test"):  # of the test set, rank 0 has the first half
        forked, served = getattr(alone, name), getattr(shared, name)
        assert (start_method(forked), start_method(served)) == (None, server)
        assert served.persistent_workers
        for whole, found in zip(next(iter(forked)), next(iter(served)), strict=True):
            assert torch.equal(whole, found)


@pytest.mark.parametrize(
    "part", [DecodeJpeg(8, augment=True), PaddingCollator(3)], ids=lambda part: type(part).__name__
)
def test_what_workers_are_sent_can_be_pickled(part: object) -> None:
    assert type(pickle.loads(pickle.dumps(part))) is type(part)
