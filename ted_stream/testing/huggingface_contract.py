"""Trains a run in Hugging Face's Trainer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from ted_stream.testing.contract_parts import (
    SAMPLER_SEED,
    batch_size_of,
    make_dataset,
    make_method,
    make_network,
    make_optimizer,
    make_scheduler,
    save_result,
    seed_of,
)
from ted_stream.testing.contract_watch import watch
from ted_stream.testing.runs import Run
from ted_stream.trainers.huggingface import PruningMixin

__all__ = ["train"]


class PrunedTrainer(PruningMixin, Trainer):
    """The Trainer itself, pruned."""


class WithLoss(nn.Module):
    """A network as Hugging Face has it: it computes its own loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss and the logits of a batch."""
        logits = self.network(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Watch(TrainerCallback):
    """Watches the run's engine from where there is one."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin."""
        self.begin()


def saving(interval: str | None) -> dict[str, Any]:
    """The Trainer's arguments for checkpoints."""
    if interval is None:
        return {"save_strategy": "no"}
    every, unit = int(interval[:-2]), interval[-2:]
    if unit == "ba":
        return {"save_strategy": "steps", "save_steps": every}
    if every != 1:
        raise ValueError(f"save_interval is {interval!r}, but the Trainer saves at every epoch's end: '1ep'.")
    return {"save_strategy": "epoch"}


def train(run: Run, out: Path, rank: int) -> None:
    """Train, and write down what came of it."""
    # Accelerate calls the device of one CPU rank among several cpu:0, which torch.load knows no way to load to, so the
    # Trainer could not read its own checkpoints.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    network, dataset = make_network(run), make_dataset(run, names=("x", "labels"))
    model, optimizer = WithLoss(network), make_optimizer(network)
    checkpoints = out / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        run_name="run",
        num_train_epochs=run.epochs,
        per_device_train_batch_size=batch_size_of(run),
        dataloader_num_workers=run.workers,
        dataloader_persistent_workers=run.workers > 0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        data_seed=SAMPLER_SEED,
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **saving(run.save_interval),
    )
    full_length = -(-len(dataset) // run.global_batch_size)
    trainer = PrunedTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=default_collate,
        optimizers=(optimizer, make_scheduler(optimizer, run, full_length)),
        callbacks=[Watch(lambda: watch(trainer.pruning_engine, run, out, rank))],
        pruning=make_method(run),
        pruning_folder=out / "run",
    )
    torch.manual_seed(seed_of(rank))
    trainer.train(resume_from_checkpoint=True if list(checkpoints.glob("checkpoint-*")) else None)
    save_result(out, rank, network, trainer.pruning_engine)
