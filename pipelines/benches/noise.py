"""Wrong labels: how well a cross-fitted loss finds them, and whether training by learnability helps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, pad
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import Pruner
from ted_stream.export import write_scores
from ted_stream.methods import TED, Learnability, Method, RandomPruning
from ted_stream.pruning.hashing import hash_ids
from ted_stream.sampler import PrunedSampler
from ted_stream.skip_list import read_skip_list

from ..corpora.images import read_images
from ..corpora.prepared import read_description
from ..training.networks import convnet

__all__ = ["BASELINES", "Found", "Trial", "run_trial"]

_BATCH = 128
_LR = 0.2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one seed trains on and how.

    Args:
        path: folder of prepared images.
        samples: of the training split, drawn by the seed.
        size: side of the images, scaled down.
        epochs: T.
        noise: share of the labels that are replaced by another class.
        prune_ratio: s of the roller-coaster.
        seed: of all.
    """

    path: str
    samples: int = 10_000
    size: int = 16
    epochs: int = 30
    noise: float = 0.3
    prune_ratio: float = 0.7
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """Wrong labels among as many samples of the highest reference loss as there are wrong labels.

    Args:
        share: of those that are wrong: precision, and recall as well.
        auc: the probability that a wrong label has a higher loss than a right one.
        accuracy: of the reference models on the test split.
    """

    share: float
    auc: float
    accuracy: float


@dataclass(frozen=True)
class _Data:
    """Images (N, C, H, W) float32 and labels (N,) int64 of both splits; which training labels are wrong."""

    classes: int
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    wrong: NDArray[np.bool_]


def _load(trial: Trial) -> _Data:
    description = read_description(trial.path)
    rng = np.random.default_rng(trial.seed)

    def split(name: str, rows: NDArray[np.int64] | None) -> tuple[Tensor, Tensor]:
        pixels, classes, _ = read_images(Path(trial.path) / name)
        if rows is not None:
            pixels, classes = pixels[rows], classes[rows]
        images = torch.from_numpy(pixels).float()
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        images = (images - torch.tensor(description.mean)[:, None, None]) / torch.tensor(description.std)[:, None, None]
        return adaptive_avg_pool2d(images, trial.size), torch.from_numpy(classes)

    rows = np.sort(rng.permutation(description.samples["train"])[: trial.samples])
    images, labels = split("train", rows)
    classes = len(description.classes)
    wrong = np.zeros(len(labels), np.bool_)
    wrong[rng.permutation(len(labels))[: round(trial.noise * len(labels))]] = True
    others = torch.from_numpy((labels.numpy() + rng.integers(1, classes, size=len(labels))) % classes)
    labels = torch.where(torch.from_numpy(wrong), others, labels)
    return _Data(classes, images, labels, *split("test", None), wrong)


def _augmented(images: Tensor) -> Tensor:
    """Shifted by up to two pixels, and flipped."""
    size = images.shape[-1]
    dx, dy = torch.randint(5, (2, len(images)))
    rows = torch.arange(size)
    padded = pad(images, (2, 2, 2, 2))
    at = torch.arange(len(images))[:, None, None]
    images = padded[at, :, (dy[:, None] + rows)[:, :, None], (dx[:, None] + rows)[:, None, :]].permute(0, 3, 1, 2)
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


def _network(trial: Trial, data: _Data) -> nn.Module:
    torch.manual_seed(trial.seed)
    return convnet(classes=data.classes, in_channels=data.images.shape[1], channels=(32, 64, 128))


def _optimized(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    optimizer = torch.optim.SGD(model.parameters(), _LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return optimizer, OneCycleLR(optimizer, _LR, total_steps=steps, pct_start=0.25)


def _train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """On all of the samples, for so many steps."""
    optimizer, schedule = _optimized(model, steps)
    batches = _batches(len(labels))
    model.train()
    for _ in range(steps):
        rows = next(batches)
        cross_entropy(model(_augmented(images[rows])), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _batches(samples: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(samples).split(_BATCH)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(part) for part in images.split(1000)])


def _accuracy(model: nn.Module, data: _Data) -> float:
    return float((_logits(model, data.test_images).argmax(1) == data.test_labels).float().mean())


def _reference(trial: Trial, data: _Data, folds: int) -> tuple[Tensor, Found]:
    """The loss of every sample by a model that was trained on the other folds, as long as the runs are in epochs."""
    of_fold = torch.from_numpy(hash_ids(np.arange(len(data.labels)), seed=trial.seed).argsort().argsort() % folds)
    losses = torch.empty(len(data.labels))
    accuracies = []
    for fold in range(folds):
        rows = torch.nonzero(of_fold != fold).squeeze(1)
        model = _network(trial, data)
        _train(model, data.images[rows], data.labels[rows], trial.epochs * -(-len(rows) // _BATCH))
        mine = of_fold == fold
        losses[mine] = cross_entropy(_logits(model, data.images[mine]), data.labels[mine], reduction="none")
        accuracies.append(_accuracy(model, data))
    order = losses.numpy().argsort()[::-1]
    ranks = losses.numpy().argsort().argsort()
    wrong, right = int(data.wrong.sum()), int((~data.wrong).sum())
    auc = (ranks[data.wrong].sum() - wrong * (wrong - 1) / 2) / (wrong * right)
    found = Found(share=float(data.wrong[order[:wrong]].mean()), auc=float(auc), accuracy=float(np.mean(accuracies)))
    return losses, found


def _prune(trial: Trial, data: _Data, method: Method, folder: str) -> dict[str, float]:
    """A run of the method, its learning rate by samples forwarded."""
    model = _network(trial, data)
    dataset = TensorDataset(data.images, data.labels)
    loader = DataLoader(dataset, batch_size=_BATCH, sampler=PrunedSampler(dataset, seed=trial.seed))
    optimizer, schedule = _optimized(model, trial.epochs * -(-len(dataset) // _BATCH))
    steps = 0
    with Pruner(
        method, model, loader, epochs=trial.epochs, folder=folder, progress="samples", seed=trial.seed
    ) as pruner:
        stretched: Any = pruner.stretch(schedule)
        for _ in pruner:
            for images, labels in pruner.batches():
                model.train()
                pruner.loss(cross_entropy(model(_augmented(images)), labels)).backward()
                optimizer.step()
                optimizer.zero_grad()
                stretched.step()
                steps += 1
        pruned = [record for record in pruner.engine.records if record.kept < len(dataset)]
        ids = read_skip_list(f"{folder}/{pruned[-1].skip_list}").kept_ids()
        return {
            "accuracy": _accuracy(model, data),
            "save_ratio": pruner.engine.save_ratio,
            "wrong": float(data.wrong[ids].mean()),
            "steps": steps,
        }


def _methods(trial: Trial, references: Mapping[str, str]) -> dict[str, Method]:
    s = trial.prune_ratio
    methods: dict[str, Method] = {
        "random": RandomPruning(s, loss_correction=False),
        "highest loss": TED(s, importance="loss", loss_correction=False),
    }
    for name, path in references.items():
        methods[f"learnability, {name}"] = Learnability(s, reference=path)
        methods[f"learnability, {name}, drawn"] = Learnability(s, reference=path, choice="sampled")
    return methods


FOLDS = (2, 5)
BASELINES = ("random", "full data, as many steps")


def run_trial(trial: Trial) -> Iterator[tuple[str, Found | dict[str, float]]]:
    """The references first, then a run of every arm.

    Yields:
        What it was, and what came of it: of a run its test ``accuracy``, its ``save_ratio``, the share of ``wrong``
        labels in what the last pruned epoch kept, and its ``steps``.
    """
    data = _load(trial)
    with tempfile.TemporaryDirectory() as folder:
        layout = PrunedSampler(TensorDataset(data.images, data.labels)).layout
        references: dict[str, str] = {}
        for folds in FOLDS:
            losses, found = _reference(trial, data, folds)
            yield f"reference, {folds} folds", found
            path = references[f"{folds} folds"] = f"{folder}/{folds}.parquet"
            write_scores(path, layout, losses.numpy(), provenance={"method": "reference", "folds": str(folds)})
        steps = 0
        for number, (name, method) in enumerate(_methods(trial, references).items()):
            result = _prune(trial, data, method, f"{folder}/{number}")
            steps = steps or int(result["steps"])
            yield name, result
        model = _network(trial, data)
        _train(model, data.images, data.labels, steps)
        yield "full data, as many steps", {"accuracy": _accuracy(model, data), "steps": steps}
