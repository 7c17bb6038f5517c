"""Epochs that end with a batch of one row, which BatchNorm cannot take, are foretold."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from small_run import TupleDataset, make_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import DataPruning, InfoBatch, PrunedSampler, RandomPruning
from ted_stream.methods import Method

NUM_SAMPLES = 40
KEEPS_33 = RandomPruning(0.175, schedule="constant", annealing=0.5)


def with_batch_norm() -> ComposerClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return ComposerClassifier(net, num_classes=3)


@pytest.fixture
def make(make_trainer: Callable[..., Trainer], make_mds: Callable[..., str], tmp_path: Path) -> Callable[..., Trainer]:
    """A function that makes a Trainer of four epochs."""

    def build(
        kind: str,
        method: Method = KEEPS_33,
        *,
        batch_size: int = 8,
        num_samples: int = NUM_SAMPLES,
        model: Any = None,
        drop_last: bool = False,
        **arguments: Any,
    ) -> Trainer:
        if kind == "map":
            data: Any = TensorDataset(torch.randn(num_samples, 6), torch.arange(num_samples) % 3)
            loader = DataLoader(data, batch_size=batch_size, sampler=PrunedSampler(data), drop_last=drop_last)
        else:
            data = TupleDataset(local=make_mds(num_samples), shuffle=True, batch_size=batch_size)
            loader = DataLoader(data, batch_size=batch_size)
        pruning = DataPruning(method, folder=tmp_path)
        settings: dict[str, Any] = {"max_duration": "4ep"} | arguments
        model = model or with_batch_norm()
        return make_trainer("", [pruning], model=model, dataset=data, dataloader=loader, **settings)

    return build


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_a_last_batch_of_one_row_is_foretold(kind: str, make: Callable[..., Trainer]) -> None:
    trainer = make(kind)
    words = r"Epoch 0 is to keep 33 samples: with batch_size=8 on 1 ranks.*1 more epochs.*BatchNorm1d.*Choose another"
    with pytest.warns(UserWarning, match=words), pytest.raises(ValueError, match="more than 1 value per channel"):
        trainer.fit()
    assert trainer.state.timestamp.batch == 4


def test_a_microbatch_of_one_row_is_foretold(make: Callable[..., Trainer]) -> None:
    trainer = make("map", RandomPruning(0.125, schedule="constant"), device_train_microbatch_size=2, batch_size=10)
    with (
        pytest.warns(UserWarning, match=r"Epoch 0 is to keep 35 samples.*one row"),
        pytest.raises(ValueError, match="more than 1 value per channel"),
    ):
        trainer.fit()


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 11},
        {"drop_last": True},
        {"model": make_model()},
        {"train_subset_num_batches": 4},
        {"method": InfoBatch(0.5), "batch_size": 40},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_epochs_without_one_are_not_warned_of(settings: dict[str, Any], make: Callable[..., Trainer]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*one row")
        make("map", **settings).fit()


@pytest.mark.parametrize(("num_samples", "batch_size"), [(41, 8), (40, 1)])
def test_what_full_epochs_have_too_is_not_warned_of(
    num_samples: int, batch_size: int, make: Callable[..., Trainer]
) -> None:
    """Such a run fails in its first epoch without pruning as well."""
    trainer = make("map", RandomPruning(0.175), num_samples=num_samples, batch_size=batch_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*as no full epoch")
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            trainer.fit()


def test_a_sampler_tells_its_share_of_what_is_kept() -> None:
    data = TensorDataset(torch.zeros(40, 1))
    for rank in range(3):
        assert PrunedSampler(data, 3, rank).samples_of_rank(25) == 9
        assert PrunedSampler(data, 3, rank, drop_last=True).samples_of_rank(25) == 8
