"""Time of a pruned run in a plain loop and in Hugging Face's Trainer, beside the same run without pruning."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ted_stream.methods import TED
from ted_stream.sampler import PrunedSampler

from .step import MODELS, Workload, loss_of

__all__ = ["HOSTS", "Row", "bench_host", "describe"]

_WARM_UP = 2  # steps of every run that are not counted


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """A run: seconds of the steps of its first epoch, and of the boundary after that."""

    steps: list[float]
    boundary: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pruned runs beside plain ones, in turns.

    Args:
        host: a key of ``HOSTS``.
        model: its name.
        plain: seconds of the plain run's step, by round.
        ratios: seconds of the pruned run's step, in which every sample is measured, per second of the plain one's.
        boundaries: seconds of the boundary between the first two epochs.
    """

    host: str
    model: str
    plain: list[float]
    ratios: list[float]
    boundaries: list[float]

    def epoch_ratio(self, steps: int) -> float:
        """What an epoch of so many full steps costs with its boundary, per second of a plain one."""
        return median(self.ratios) + median(self.boundaries) / (steps * median(self.plain))


class _InMemory(Dataset):
    """Samples as mappings, or pairs."""

    def __init__(self, inputs: Tensor, labels: Tensor, *, mappings: bool) -> None:
        self.inputs, self.labels, self.mappings = inputs, labels, mappings

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, at: int) -> Any:
        if self.mappings:
            return {"inputs": self.inputs[at], "labels": self.labels[at]}
        return self.inputs[at], self.labels[at]


class _Clock:
    """Processor time between the ends of steps on the CPU, which does not count that of other processes; else time."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._ends: list[float] = []

    def step_ended(self) -> None:
        """Note the time."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter() if self._on_gpu else time.process_time())

    def steps(self, count: int) -> list[float]:
        """Seconds of the first steps, but of those that warm up."""
        ends = self._ends[_WARM_UP:count]
        return [after - before for before, after in pairwise(ends)]


def _in_loop(workload: Workload, data: tuple[Tensor, Tensor], size: int, pruned: bool, folder: str) -> _Timed:
    from ted_stream.trainers.loop import Pruner

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = workload.build().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    dataset = _InMemory(*data, mappings=False)
    loader = DataLoader(dataset, batch_size=size, sampler=PrunedSampler(dataset))
    full, clock = len(loader), _Clock(device)

    def train(batches: Iterator[Any], seen: Callable[[Tensor], Tensor]) -> None:
        for batch in batches:
            inputs, labels = (part.to(device) for part in batch)
            seen(loss_of(model(inputs), (inputs, labels))).backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.step_ended()

    if not pruned:
        for _ in range(2):
            train(iter(loader), lambda loss: loss)
        return _Timed(steps=clock.steps(full), boundary=0.0)
    with Pruner(TED(0.5, annealing=0.0), model, loader, epochs=2, folder=folder) as pruner:
        for _ in pruner:
            train(pruner.batches(), pruner.loss)
    return _Timed(steps=clock.steps(full), boundary=pruner.records[1].boundary_seconds)


class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(inputs)
        return {"loss": loss_of(logits, (inputs, labels)), "logits": logits}


def _in_huggingface(workload: Workload, data: tuple[Tensor, Tensor], size: int, pruned: bool, folder: str) -> _Timed:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from ted_stream.trainers.huggingface import PruningMixin

    class PrunedTrainer(PruningMixin, Trainer):
        pass

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = _Clock(device)

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.step_ended()

    arguments: dict[str, Any] = {
        "model": _WithLoss(workload.build()),
        "args": TrainingArguments(
            output_dir=folder,
            num_train_epochs=2,
            per_device_train_batch_size=size,
            optim="sgd",
            use_cpu=device.type == "cpu",
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        "train_dataset": _InMemory(*data, mappings=True),
        "callbacks": [Steps()],
    }
    trainer = PrunedTrainer(pruning=TED(0.5, annealing=0.0), **arguments) if pruned else Trainer(**arguments)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    boundary = trainer.pruning_records[1].boundary_seconds if isinstance(trainer, PrunedTrainer) else 0.0
    return _Timed(steps=clock.steps(-(-len(data[0]) // size)), boundary=boundary)


HOSTS = {"loop": _in_loop, "huggingface": _in_huggingface}


def bench_host(host: str, model: str, *, rounds: int = 5, steps: int = 24, batch_size: int | None = None) -> Row:
    """Train for two epochs without and with pruning, in turns; which is first changes from round to round.

    Args:
        host: a key of ``HOSTS``.
        model: a key of the models of :mod:`pipelines.benches.step`.
        rounds: of both.
        steps: of a full epoch.
        batch_size: samples of a step; the model's own where it is ``None``.
    """
    workload = MODELS["gpu" if torch.cuda.is_available() else "cpu"][model]
    size = batch_size or workload.batch_size
    torch.manual_seed(0)
    data = workload.batch(size * steps)
    pairs: list[tuple[_Timed, _Timed]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            found = {
                pruned: HOSTS[host](workload, data, size, pruned, os.path.join(folder, f"{number}-{pruned}"))
                for pruned in ((False, True) if number % 2 else (True, False))
            }
            pairs.append((found[False], found[True]))
    del pairs[0]  # in which all is imported and allocated
    return Row(
        host=host,
        model=model,
        plain=[median(plain.steps) for plain, _ in pairs],
        ratios=[median(pruned.steps) / median(plain.steps) for plain, pruned in pairs],
        boundaries=[pruned.boundary for _, pruned in pairs],
    )


def describe(row: Row) -> str:
    """A row in one line."""
    step = f"{median(row.ratios):.3f} ({min(row.ratios):.3f} – {max(row.ratios):.3f})"
    return (
        f"{row.host:12}{row.model:10} plain {1000 * median(row.plain):.4g} ms · step {step} · "
        f"boundary {1000 * median(row.boundaries):.3g} ms · 1,000 steps and a boundary {row.epoch_ratio(1000):.3f}"
    )
