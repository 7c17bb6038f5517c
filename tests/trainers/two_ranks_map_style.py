"""Trains on map-style data on the ranks it is launched on and writes down what every rank saw.

Run by test_map_style.py, which shares what is defined here.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from composer import Algorithm, Callback, State, Trainer
from composer.models import ComposerClassifier, ComposerModel
from composer.utils import dist
from small_run import make_ted
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from ted_stream import DataPruning
from ted_stream.sampler import PrunedSampler

NUM_SAMPLES = 131
GLOBAL_BATCH_SIZE = 16


def features(num_samples: int = NUM_SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that tell the samples apart, and labels that can be learned from them."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, num_samples)
    x = np.random.default_rng(1).normal(size=(3, 6))[y] + rng.normal(size=(num_samples, 6))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def make_data(kind: str = "tensors") -> Any:
    x, y = features()
    if kind == "hugging face":
        columns = {"x": x.tolist(), "labels": y.tolist()}
        return datasets.Dataset.from_dict(columns).with_format("torch")
    if kind == "subset":
        x, y = (torch.cat([tensor.flip(0), tensor]) for tensor in (x, y))
        return Subset(TensorDataset(x, y), range(NUM_SAMPLES, 2 * NUM_SAMPLES))
    return TensorDataset(x, y)


class DictModel(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(batch["x"])

    def loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, batch["labels"])


def make_model(kind: str = "tensors") -> ComposerModel:
    torch.manual_seed(0)
    if kind == "hugging face":
        return DictModel()
    # Dropout shows whether random generators are restored.
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    return ComposerClassifier(net, num_classes=3)


class Seen(Callback):
    """The ids of every batch of this rank, by epoch, told from the batch's contents and not from its ids."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[list[int]]] = {}
        self.ids = {tuple(row): index for index, row in enumerate(features()[0].tolist())}

    def batch_start(self, state: State, logger: Any) -> None:
        x = state.batch["x"] if isinstance(state.batch, dict) else state.batch[0]
        epoch = self.epochs.setdefault(state.timestamp.epoch.value, [])
        epoch.append([self.ids[tuple(row)] for row in x.tolist()])


def make_trainer(
    algorithms: Sequence[Algorithm],
    *,
    kind: str = "tensors",
    data: Any = None,
    loader: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    **arguments: Any,
) -> Trainer:
    """A Trainer over map-style data.

    Args:
        algorithms: of the Trainer.
        kind: of the data.
        data: in its place.
        loader: arguments of the DataLoader.
        sampler: arguments of the PrunedSampler.
        arguments: of the Trainer.
    """
    model = make_model(kind)
    if "train_dataloader" not in arguments:
        data = make_data(kind) if data is None else data
        batch_size = GLOBAL_BATCH_SIZE // dist.get_world_size()
        settings = {"batch_size": batch_size, "sampler": PrunedSampler(data, **(sampler or {}))} | (loader or {})
        arguments["train_dataloader"] = DataLoader(data, **settings)
    settings = {
        "max_duration": "5ep",
        "optimizers": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        "device": "cpu",
        "seed": 17,
        "progress_bar": False,
        "auto_log_hparams": False,
        "run_name": "run",
    }
    return Trainer(model=model, algorithms=algorithms, **settings | arguments)


def outcome(trainer: Trainer, ted: DataPruning) -> dict[str, Any]:
    """What two equal runs have in common."""
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
    return {
        "digests": [record.digest for record in ted.records],
        "forwarded": [record.forwarded for record in ted.records],
        "weights": weights.tolist(),
        "scores": np.nan_to_num(ted.engine.scores(), nan=-1).tolist(),
    }


def train(out: str, kind: str, drop_last: bool, load: str | None = None, **arguments: Any) -> dict[str, Any]:
    ted, seen = make_ted(0.6, folder=f"{out}/{kind}{drop_last}"), Seen()
    trainer = make_trainer(
        [ted], kind=kind, sampler={"drop_last": drop_last}, callbacks=[seen], load_path=load, **arguments
    )
    trainer.fit()
    trainer.close()
    return outcome(trainer, ted) | {"seen": seen.epochs}


def refusals() -> list[str]:
    found = []
    wrong = [{"seed": dist.get_global_rank()}, {"rank": 0, "num_replicas": 2}]
    for sampler in wrong:
        try:
            make_trainer([make_ted(0.5)], sampler=sampler).fit()
        except (RuntimeError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def main() -> None:
    (out,) = sys.argv[1:]
    dist.initialize_dist("cpu")
    saving = {"save_folder": f"{out}/checkpoints", "save_interval": "1ba", "save_num_checkpoints_to_keep": -1}
    result = {
        "tensors": train(out, "tensors", False, **saving),
        "resumed": train(out, "tensors", False, load=f"{out}/checkpoints/ep2-ba16-rank0.pt"),
        "drop_last": train(out, "tensors", True),
        "subset": train(out, "subset", False),
        "hugging face": train(out, "hugging face", True),
        "refusals": refusals(),
    }
    with open(f"{out}/rank{dist.get_global_rank()}.json", "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
