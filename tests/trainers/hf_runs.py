"""Runs of Hugging Face's Trainer on the model, data and seed of loop_runs.py, which the tests share.

Run by itself on the ranks it is launched on: see test_huggingface_on_two_ranks.py.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from loop_runs import EPOCHS, GLOBAL_BATCH_SIZE, Net, features, make_net, outcome
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from ted_stream import PrunedStreamingDataset, PruningMixin
from ted_stream.methods import Method


class PrunedTrainer(PruningMixin, Trainer):
    pass


class WithLoss(nn.Module):
    """A network as Hugging Face has it: it computes its own loss."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Dicts(Dataset):
    """The features as mappings."""

    def __init__(self) -> None:
        self.x, self.y = features()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {"x": self.x[at], "labels": self.y[at]}


class StreamedDicts(PrunedStreamingDataset):
    """The samples of a folder as mappings of float64."""

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return {"x": torch.from_numpy(sample["x"].copy()).double(), "labels": sample["y"]}


def collate(samples: list[Any]) -> dict[str, Tensor]:
    """Knows nothing of sample ids."""
    assert set(samples[0]) == {"x", "labels"}
    return {
        "x": torch.stack([sample["x"] for sample in samples]),
        "labels": torch.tensor([int(sample["labels"]) for sample in samples]),
    }


class Seeded(TrainerCallback):
    """Seeds dropout where a run begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(5)


def make_trainer(
    method: Method,
    folder: str,
    *,
    data: str | None = None,
    ranks: int = 1,
    dropout: float = 0.2,
    cls: Callable[..., Any] = PrunedTrainer,
    model: nn.Module | None = None,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: Any = None,
    dataset: Any = None,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """A Trainer over the samples, or over a folder of streaming ones; further arguments are TrainingArguments."""
    model = model or WithLoss(make_net(dropout))
    size = GLOBAL_BATCH_SIZE // ranks
    if dataset is None:
        dataset = Dicts() if data is None else StreamedDicts(local=data, shuffle=True, batch_size=size)
    settings = {
        "output_dir": folder,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": size,
        "max_grad_norm": 0,
        "data_seed": 3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "run_name": "run",
    } | arguments
    if optimizers is None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        full = -(-len(dataset) // (size * ranks * settings.get("gradient_accumulation_steps", 1)))
        optimizers = optimizer, CosineAnnealingLR(optimizer, EPOCHS * full)
    return cls(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=dataset,
        data_collator=collate,
        optimizers=optimizers,
        callbacks=callbacks,
        pruning=method,
        **(options or {}),
    )


def train(method: Method, folder: str, *, resume: Any = None, **arguments: Any) -> dict[str, Any]:
    """Train, perhaps from a checkpoint."""
    callbacks = [*([] if resume else [Seeded()]), *arguments.pop("callbacks", [])]
    trainer = make_trainer(method, folder, callbacks=callbacks, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return outcome_of(trainer)


def outcome_of(trainer: Any) -> dict[str, Any]:
    class View:
        records, engine = trainer.pruning_records, trainer.pruning_engine

    return outcome(View, trainer.model) | {"steps": trainer.state.global_step}
