"""Time of a training step with TED at each site, beside the same step of Composer alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from composer import Callback, State, Trainer
from composer.core import Precision
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import reproducibility
from numpy.typing import NDArray
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from ted_stream import TED, PrunedStreamingDataset
from ted_stream.pruning import SITES

from .models import classifier, gpt
from .text_batches import PaddingCollator
from .train import ImageShards, PrunedImageShards

__all__ = ["AGAIN", "MODELS", "VARIANTS", "Row", "bench_step"]

PLAIN = "plain"
AGAIN = "plain again"  # a second plain trainer: its ratio is what the method does not resolve
VARIANTS = (AGAIN, *SITES)

_CLASSES = 10
_VOCABULARY = 1024
_TOKENS = 128  # of a text sample


@dataclass(frozen=True, kw_only=True)
class _Workload:
    """A model and what it trains on.

    Args:
        build: makes the model, from seeded generators.
        columns: of the dataset.
        sample: a sample of random content.
        plain: the dataset's class without TED.
        pruned: and with it.
        collate: of the loader.
        batch_size: unless told another.
    """

    build: Callable[[], ComposerModel]
    columns: dict[str, str]
    sample: Callable[[np.random.Generator], dict[str, Any]]
    plain: type[StreamingDataset]
    pruned: type[StreamingDataset]
    collate: PaddingCollator | None
    batch_size: int


def _images(build: Callable[[], ComposerModel], batch_size: int) -> _Workload:
    def sample(rng: np.random.Generator) -> dict[str, Any]:
        return {"image": rng.standard_normal((3, 32, 32), np.float32), "label": int(rng.integers(_CLASSES))}

    return _Workload(
        build=build,
        columns={"image": "ndarray:float32:3,32,32", "label": "int"},
        sample=sample,
        plain=ImageShards,
        pruned=PrunedImageShards,
        collate=None,
        batch_size=batch_size,
    )


def _tokens(build: Callable[[], ComposerModel], batch_size: int) -> _Workload:
    def sample(rng: np.random.Generator) -> dict[str, Any]:
        tokens = rng.integers(_VOCABULARY, size=_TOKENS)
        return {"input_ids": tokens, "labels": tokens}

    return _Workload(
        build=build,
        columns={"input_ids": f"ndarray:int64:{_TOKENS}", "labels": f"ndarray:int64:{_TOKENS}"},
        sample=sample,
        plain=StreamingDataset,
        pruned=PrunedStreamingDataset,
        collate=PaddingCollator(pad_id=0),
        batch_size=batch_size,
    )


MODELS: dict[str, _Workload] = {
    "convnet": _images(
        # That of configs/cifar10_cpu.yaml.
        lambda: classifier("convnet", classes=_CLASSES, in_channels=3, channels=(16, 32, 64, 128), channels_last=True),
        batch_size=128,
    ),
    "resnet18": _images(lambda: classifier("resnet18_cifar", classes=_CLASSES, in_channels=3), batch_size=8),
    "gpt": _tokens(lambda: gpt(vocab_size=_VOCABULARY, max_length=_TOKENS), batch_size=16),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one model.

    Args:
        model: its name.
        batch_size: samples of a step.
        seconds: of the plain step, the median of every round.
        ratios: of every variant, its step's seconds per second of the plain step in the same round.
    """

    model: str
    batch_size: int
    seconds: list[float]
    ratios: dict[str, list[float]]

    @property
    def milliseconds(self) -> float:
        """Of the plain step."""
        return 1000 * median(self.seconds)

    def quartiles(self, variant: str) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of a variant's ratios."""
        low, middle, high = np.quantile(self.ratios[variant], (0.25, 0.5, 0.75)).tolist()
        return low, middle, high


class _StepTimes(Callback):
    """When the steps of the last epoch ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Forget the epoch before."""
        del state, logger
        self.ends.clear()

    def batch_end(self, state: State, logger: Logger) -> None:
        """The trainer has read the loss by now, so that nothing of the step is left to a device."""
        del state, logger
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> NDArray[np.float64]:
        """From one step's end to the next's; of the first it is unknown when its loader started."""
        return np.diff(self.ends)


def bench_step(model: str, *, rounds: int, steps: int, batch_size: int | None = None, device: str = "cpu") -> Row:
    """Train the same seeded model without TED, without TED again, and with TED at each site, in turns.

    TED keeps all samples, so that every variant trains on the same batches. A round is an epoch of each; who is first
    changes from round to round, and the ratios are of one round, so that a machine that slows down slows both.
    The first round is not counted.

    Args:
        model: a key of ``MODELS``.
        rounds: that count.
        steps: of an epoch, at least 2: the first is not timed.
        batch_size: samples of a step; the model's own where it is ``None``.
        device: ``cpu`` or ``gpu``, which computes in bfloat16.
    """
    workload = MODELS[model]
    batch_size = batch_size or workload.batch_size
    with tempfile.TemporaryDirectory() as folder:
        _write(workload, f"{folder}/data", steps * batch_size)
        with _trainers(workload, folder, batch_size, device) as trainers:
            measured = [_round(trainers, first) for first in range(rounds + 1)][1:]
    return Row(
        model=model,
        batch_size=batch_size,
        seconds=[seconds[PLAIN] for seconds in measured],
        ratios={variant: [seconds[variant] / seconds[PLAIN] for seconds in measured] for variant in VARIANTS},
    )


def _write(workload: _Workload, folder: str, samples: int) -> None:
    rng = np.random.default_rng(0)
    with MDSWriter(out=folder, columns=workload.columns) as writer:
        for _ in range(samples):
            writer.write(workload.sample(rng))


@contextmanager
def _trainers(
    workload: _Workload, folder: str, batch_size: int, device: str
) -> Iterator[dict[str, tuple[Trainer, _StepTimes]]]:
    """A trainer for every variant, and the times of its steps."""
    trainers: dict[str, tuple[Trainer, _StepTimes]] = {}
    try:
        for variant in (PLAIN, *VARIANTS):
            times = _StepTimes()
            with_ted = variant in SITES
            dataset = (workload.pruned if with_ted else workload.plain)(local=f"{folder}/data", batch_size=batch_size)
            reproducibility.seed_all(0)
            network = workload.build()
            trainer = Trainer(
                model=network,
                train_dataloader=DataLoader(dataset, batch_size=batch_size, collate_fn=workload.collate),
                optimizers=torch.optim.SGD(network.parameters(), 0.01, momentum=0.9),
                algorithms=TED(0, site=variant, folder=f"{folder}/{variant}") if with_ted else None,
                callbacks=times,
                device=device,
                precision=Precision.AMP_BF16 if device == "gpu" else Precision.FP32,
                progress_bar=False,
                auto_log_hparams=False,
            )
            trainers[variant] = trainer, times
        yield trainers
    finally:
        for trainer, _ in trainers.values():
            trainer.close()


def _round(trainers: dict[str, tuple[Trainer, _StepTimes]], first: int) -> dict[str, float]:
    """The median step of an epoch, in seconds, by variant."""
    variants = list(trainers)
    first %= len(variants)
    seconds = {}
    for variant in variants[first:] + variants[:first]:
        trainer, times = trainers[variant]
        trainer.fit(duration="1ep")
        seconds[variant] = float(np.median(times.seconds))
    return seconds
