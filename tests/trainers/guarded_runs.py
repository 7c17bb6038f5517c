"""Runs of a loop on digits, whose selections degenerate or do not; by itself, on the ranks that it is launched on.

See test_guard.py and test_guard_on_two_ranks.py.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from loop_runs import leave
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import TED, PrunedSampler, Pruner, SelectionWarning
from ted_stream.engine import Ranks
from ted_stream.engine.state import load_measurements
from ted_stream.methods import Method

N, BATCH_SIZE, EPOCHS = 600, 32, 12
LINEAR = TED(0.6, schedule="linear", annealing=0)  # of 12 epochs every one keeps an even number


def digits() -> TensorDataset:
    pixels, classes = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels[:N]).double()
    return TensorDataset((x - 4.9) / 6, torch.from_numpy(classes[:N]).long())


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()


def train(
    method: Method,
    folder: Path,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    ranks: int = 1,
    stop: int | None = None,
    state: dict[str, Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    dataset: TensorDataset | None = None,
) -> tuple[Pruner, dict[str, Any]]:
    """A run, or the part of one up to the first batch of an epoch, and its state there."""
    torch.manual_seed(seed)
    dataset = dataset or digits()
    model = wrap(make_model())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    size = BATCH_SIZE // ranks
    loader = DataLoader(dataset, batch_size=size, sampler=PrunedSampler(dataset, seed=seed))
    progress = "epochs" if isinstance(method, TED) else None  # as in its paper
    pruner = Pruner(method, model, loader, epochs=epochs, folder=folder, seed=seed, progress=progress)
    schedule = OneCycleLR(optimizer, 0.1, total_steps=epochs * pruner.full_length + 1)
    scheduler = pruner.stretch(schedule)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": schedule, "pruner": pruner}
    for name, part in parts.items():
        if state is not None:
            part.load_state_dict(state[name])
    with pruner:
        for epoch in pruner:
            for x, y in pruner.batches():
                pruner.loss(loss_of(model(x), y)).backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                if epoch == stop:
                    return pruner, {name: part.state_dict() for name, part in parts.items()}
    return pruner, {}


def said(pruner: Pruner) -> dict[int, list[str]]:
    """What was warned of, by epoch."""
    return {record.epoch: record.warnings for record in pruner.records if record.warnings}


def as_version_4(engine: dict[str, Any]) -> None:
    """Make of a state what the version before made of the same measurements."""
    loaded, classes = load_measurements(engine["measurements"], Ranks()), digits().tensors[1].numpy()
    columns = {"ids": loaded.ids, "importance": loaded.importance.astype(np.float64).view(np.int64)}
    columns |= {"steps": loaded.steps, "labels": classes[loaded.ids]}
    engine["measurements"] = {name: torch.from_numpy(column) for name, column in columns.items()}
    engine["version"] = 4
    del engine["classes"]


def main(out: str) -> None:
    """A run that freezes; and one that diverges where warnings are errors."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        frozen, _ = train(LINEAR, Path(out, "frozen"), ranks=ranks, wrap=DistributedDataParallel)
    found: dict[str, Any] = {
        "digests": [record.digest for record in frozen.records],
        "scarce": [record.scarce_classes for record in frozen.records],
        "said": list(said(frozen).items()),
        "heard": [str(each.message) for each in heard if issubclass(each.category, SelectionWarning)],
    }
    warnings.simplefilter("error", SelectionWarning)
    try:
        wrong = TensorDataset(digits().tensors[0] * torch.nan, digits().tensors[1])
        train(LINEAR, Path(out, "diverged"), ranks=ranks, wrap=DistributedDataParallel, dataset=wrong)
    except Exception as error:
        found["error"] = [type(error).__name__, str(error)]
    Path(f"{out}/rank{rank}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
