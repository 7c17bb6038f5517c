"""Time that pruning takes between two epochs of a real run, by what it is spent on."""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from composer import Callback, State, Trainer
from composer.loggers import Logger
from composer.models import ComposerClassifier
from composer.utils import dist, get_free_tcp_port
from streaming import MDSWriter
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader

from ted_stream import TED, DataPruning, PrunedStreamingDataset
from ted_stream.engine import PruningEngine, RunFolder
from ted_stream.pruning import Owned, ScoreStore
from ted_stream.reading import Prunable

__all__ = ["PARTS", "SHARE", "Boundary", "bench_boundary"]

SHARE = 0.01  # of an epoch, that its boundary may take
EPOCHS = 3

# What is timed; what the engine takes beside these is "list", the making of the skip-list with its digest.
_TIMED: dict[str, list[tuple[Any, str]]] = {
    "fold": [(ScoreStore, "update")],
    "selection": [(TED, "choose")],
    "writing": [(RunFolder, "write")],
    "activation": [(Prunable, "activate")],
    "engine": [(PruningEngine, "begin_epoch"), (PruningEngine, "end_epoch")],
    "statistics": [(Owned, "quantiles")],
    "planning": [(Prunable, "resample_streams")],
}
_WITHIN = ("fold", "selection", "writing", "activation", "statistics")  # the engine
PARTS = {
    "fold": "measurements into scores",
    "selection": "which samples to keep",
    "list": "making of the skip-list and its digest",
    "writing": "to the run folder",
    "activation": "for the dataset's workers",
    "statistics": "quantiles of the scores, for the record",
    "planning": "the ids of the kept samples; stock makes those of all",
}

_CLASSES = 2
_SAMPLE_BYTES = 4 + 1 + 4  # two columns, and the sample's place in its shard


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """What the boundary before an epoch took on rank 0.

    Args:
        epoch: 0-based.
        kept: samples of it.
        recorded: seconds that the run's record names.
        parts: seconds by key of ``PARTS``.
    """

    epoch: int
    kept: int
    recorded: float
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())


def bench_boundary(samples: int, *, shards: int, ranks: int, batch_size: int = 1024) -> list[Boundary]:
    """Train a tiny model for three epochs with TED(0.7), and time what pruning does between them.

    Args:
        samples: N, of a few bytes each.
        shards: that they are spread over.
        ranks: processes, over gloo.
        batch_size: samples of a step on each rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(f"{folder}/data", samples, shards)
        spawn(_run, (ranks, get_free_tcp_port(), folder, batch_size), nprocs=ranks)
        return [Boundary(**boundary) for boundary in json.loads(Path(folder, "boundaries.json").read_text())]


def _write(folder: str, samples: int, shards: int) -> None:
    with MDSWriter(out=folder, columns={"x": "float32", "y": "uint8"}) as writer:
        writer.size_limit = writer.extra_bytes_per_shard + -(-samples // shards) * _SAMPLE_BYTES
        for index in range(samples):
            writer.write({"x": index / samples, "y": index % _CLASSES})


# One rank ----------------------------------------------------------------------------------------------------------


class _Pairs(PrunedStreamingDataset):
    """(x, y) samples."""

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return float(sample["x"]), int(sample["y"])


def _collate(samples: Sequence[tuple[float, int, int]]) -> tuple[Tensor, ...]:
    x, *others = map(torch.tensor, zip(*samples, strict=True))
    return x[:, None], *others


class _Stopwatch(Callback):
    """Seconds that the functions of ``_TIMED`` took since the epoch before had its first batch."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.epochs: list[dict[str, float]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its seconds counted under a name."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return wrapper

    def batch_start(self, state: State, logger: Logger) -> None:
        """The epoch has been planned by its first batch."""
        del logger
        if state.timestamp.batch_in_epoch == 0:
            self.epochs.append(dict(self.seconds))
            self.seconds.clear()


def _parts(seconds: dict[str, float]) -> dict[str, float]:
    making = seconds["engine"] - sum(seconds[part] for part in _WITHIN)
    return {part: making if part == "list" else seconds[part] for part in PARTS}


def _run(rank: int, ranks: int, port: int, folder: str, batch_size: int) -> None:
    """Train, and write rank 0's boundaries down."""
    os.environ |= {  # as Composer's launcher sets them
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    warnings.filterwarnings("ignore", module="composer")  # of the last batch, which is smaller
    dist.initialize_dist("cpu")
    model = ComposerClassifier(nn.Linear(1, _CLASSES), num_classes=_CLASSES)
    pruning = DataPruning(TED(0.7, annealing=0), folder=f"{folder}/run")
    stopwatch = _Stopwatch()
    dataset = _Pairs(local=f"{folder}/data", batch_size=batch_size, shuffle=True)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(dataset, batch_size=batch_size, collate_fn=_collate),
        max_duration=f"{EPOCHS}ep",
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        algorithms=pruning,
        callbacks=stopwatch,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    )
    with ExitStack() as stack:
        for name, places in _TIMED.items():
            for owner, attribute in places:
                function = stopwatch.timed(name, getattr(owner, attribute))
                stack.enter_context(patch.object(owner, attribute, function))
        trainer.fit()
    if dist.get_global_rank() == 0:
        measured = list(zip(pruning.records, stopwatch.epochs, strict=True))[1:]  # nothing is before epoch 0
        boundaries = [
            Boundary(epoch=record.epoch, kept=record.kept, recorded=record.boundary_seconds, parts=_parts(seconds))
            for record, seconds in measured
        ]
        Path(folder, "boundaries.json").write_text(json.dumps([asdict(boundary) for boundary in boundaries]))
