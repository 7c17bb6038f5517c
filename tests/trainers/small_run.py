"""A small model and dataset that the tests of this folder share."""

from typing import Any

import torch
from composer import Callback, State
from composer.models import ComposerClassifier
from torch import nn

from ted_stream import TED, DataPruning, PrunedStreamingDataset, RandomPruning

BATCH_SIZE = 8


class TupleDataset(PrunedStreamingDataset):
    """(x, y) samples, and a count of how often each sample was read in this process."""

    def __init__(self, **arguments: Any) -> None:
        self.read: list[int] = []
        super().__init__(**arguments)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        self.read.append(sample["id"])
        return sample["x"], sample["y"]


def make_model(seed: int = 0) -> ComposerClassifier:
    torch.manual_seed(seed)
    return ComposerClassifier(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), num_classes=3)


class ReadPerEpoch(Callback):
    """The sample ids that the dataset read in every epoch, in this process."""

    def __init__(self, dataset: TupleDataset) -> None:
        self.dataset = dataset
        self.epochs: list[list[int]] = []

    def epoch_start(self, state: State, logger: Any) -> None:
        self.dataset.read.clear()

    def epoch_end(self, state: State, logger: Any) -> None:
        self.epochs.append(list(self.dataset.read))


def make_ted(
    prune_ratio: float, *, folder: Any = "ted_stream_runs/{run_name}", seed: int = 0, **settings: Any
) -> DataPruning:
    """TED with these settings, in Composer."""
    return DataPruning(TED(prune_ratio, **settings), folder=folder, seed=seed)


def make_random(prune_ratio: float, *, folder: Any = "ted_stream_runs/{run_name}", **settings: Any) -> DataPruning:
    """RandomPruning with these settings, in Composer."""
    return DataPruning(RandomPruning(prune_ratio, **settings), folder=folder)
