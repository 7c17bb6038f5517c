"""A small model and dataset that the tests of this folder share."""

from collections.abc import Sequence
from typing import Any

import torch
from composer import Algorithm, Callback, State, Trainer
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader

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


def make_trainer(
    folder: str,
    algorithms: Sequence[Algorithm] = (),
    *,
    callbacks: Sequence[Callback] = (),
    workers: int = 0,
    model: ComposerClassifier | None = None,
    dataset: Any = None,
    dataloader: Any = None,
    learning_rate: float = 0.1,
    **arguments: Any,
) -> Trainer:
    """A Trainer over a folder of samples; keyword arguments go to it."""
    model = model or make_model()
    dataset = dataset or TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    dataloader = dataloader or DataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0
    )
    settings: dict[str, Any] = {
        "max_duration": "6ep",
        "optimizers": torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9),
        "device": "cpu",
        "seed": 17,
        "progress_bar": False,
        "auto_log_hparams": False,
    }
    return Trainer(
        model=model,
        train_dataloader=dataloader,
        algorithms=list(algorithms),
        callbacks=list(callbacks),
        **(settings | arguments),
    )


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
    prune_ratio: float,
    *,
    folder: Any = "ted_stream_runs/{run_name}",
    seed: int = 0,
    progress: str | None = None,
    **settings: Any,
) -> DataPruning:
    """TED with these settings, in Composer."""
    return DataPruning(TED(prune_ratio, **settings), folder=folder, seed=seed, progress=progress)


def make_random(prune_ratio: float, *, folder: Any = "ted_stream_runs/{run_name}", **settings: Any) -> DataPruning:
    """RandomPruning with these settings, in Composer."""
    return DataPruning(RandomPruning(prune_ratio, **settings), folder=folder)
