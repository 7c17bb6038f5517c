"""What a run is made of in every host: its samples, its network, its optimizer, and what is left of it in the end."""

import random
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset

from ted_stream.engine import PruningEngine
from ted_stream.methods import Method
from ted_stream.sampler import PrunedSampler
from ted_stream.seeding import SeededSamples
from ted_stream.testing.runs import Run

__all__ = [
    "SAMPLER_SEED",
    "InMemory",
    "batch_size_of",
    "make_dataset",
    "make_loader",
    "make_method",
    "make_network",
    "make_optimizer",
    "make_scheduler",
    "noise",
    "save_result",
    "seed_of",
]

SAMPLER_SEED = 3  # of the order of map-style samples


class InMemory(Dataset):
    """(x, y) samples around three centres, or the same as a mapping.

    Args:
        num_samples: how many.
        dtype: of x.
        names: of x and y in a mapping; ``None``: none.
        augment: whether noise is added to x.
    """

    def __init__(
        self, num_samples: int, dtype: torch.dtype, names: tuple[str, str] | None, *, augment: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = torch.randint(3, (num_samples,), generator=generator)
        centres = torch.randn(3, 6, generator=generator)
        self.x = (centres[self.y] + torch.randn(num_samples, 6, generator=generator)).to(dtype)
        self.names, self.augment = names, augment

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, at: int) -> Any:
        pair = self.x[at] + noise() if self.augment else self.x[at], self.y[at]
        return pair if self.names is None else dict(zip(self.names, pair, strict=True))


def noise() -> float:
    """Of a sample, from all the global generators."""
    return 0.1 * (torch.randn(()).item() + np.random.standard_normal() + random.gauss(0, 1))


def batch_size_of(run: Run) -> int:
    """Samples per step on one rank."""
    return run.global_batch_size * (run.replication or 1) // run.ranks


def make_dataset(run: Run, names: tuple[str, str] | None = None) -> Any:
    """Of the run's data.

    Args:
        run: says which.
        names: of x and y, where the host takes samples as mappings.
    """
    if run.data is None:
        dtype = torch.float64 if run.double else torch.float32
        in_memory = InMemory(run.num_samples, dtype, names, augment=run.augment)
        return SeededSamples(in_memory) if run.augment else in_memory
    from ted_stream.testing.contract_streams import Streamed  # which samples in memory do without

    dataset = Streamed(
        local=run.data,
        shuffle=True,
        batch_size=batch_size_of(run),
        replication=run.replication,
        seed_samples=run.augment,
    )
    dataset.names, dataset.double = names, run.double
    return dataset


def make_loader(run: Run) -> DataLoader:
    """Of (x, y) batches, on this rank."""
    dataset = make_dataset(run)
    return DataLoader(
        dataset,
        batch_size=batch_size_of(run),
        sampler=PrunedSampler(dataset, seed=SAMPLER_SEED) if run.data is None else None,
        num_workers=run.workers,
        persistent_workers=run.workers > 0,
    )


def make_method(run: Run) -> Method:
    """From its repr."""
    return eval(run.method, dict(vars(resolve_name(run.module))))


def make_network(run: Run) -> nn.Sequential:
    """The same weights in every run."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(run.dropout), nn.Linear(16, 3))
    return network.double() if run.double else network


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Of a model that is sharded already, if it is to be."""
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def make_scheduler(optimizer: torch.optim.Optimizer, run: Run, full_length: int) -> CosineAnnealingLR:
    """Stepped after every batch. Torch's in every host: their own ones differ by a batch, and so would the weights.

    Args:
        optimizer: of the run.
        run: says how many epochs.
        full_length: batches in an epoch of all samples.
    """
    return CosineAnnealingLR(optimizer, run.epochs * full_length)


def seed_of(rank: int) -> int:
    """Of a rank's generators, which dropout draws from: another one on every rank."""
    return 1 + rank


def save_result(out: Path, rank: int, network: nn.Module, engine: PruningEngine) -> None:
    """Write what :func:`~ted_stream.testing.runs.load_result` loads; collective."""
    weights = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))
    records = [asdict(record) for record in engine.records]
    for record in records:
        del record["boundary_seconds"]
    result = {
        "weights": {name: np.asarray(tensor) for name, tensor in weights.items()},
        "scores": engine.scores(),
        "records": records,
    }
    torch.save(result, out / f"rank{rank}.pt")
