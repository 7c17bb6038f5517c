"""A run's network with given weights: every sample's loss, gradients over samples, and the test metrics."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.engine.generators import preserved_generators, seed_generators
from ted_stream.pruning.generalization import flat_gradient
from ted_stream.skip_list import DatasetLayout

from ..corpora.prepared import read_description
from ..training.checkpoints import load_weights
from ..training.datasets import build_loaders
from ..training.loop_host import Host
from ..training.samples_by_id import SamplesById
from ..training.settings import ConfigError
from ..training.tasks import build_task
from ..training.train import check_data
from .runs import Run, read_weights

__all__ = ["Evaluation", "Looked", "Progress"]

Progress = Callable[[int], None]
"""Told how many more samples have passed through the network."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What one pass over the training split gave.

    Attributes:
        losses: (N,) float32, every sample's own loss in nats, by id.
        gradients: Σ_k c_k ∇ℓ_k over all samples, (P,) float64 on the network's device, for each c that was asked for.
    """

    losses: NDArray[np.float32]
    gradients: Mapping[str, Tensor] = field(repr=False)


class Evaluation:
    """The network of a run and its data, in evaluation mode, without augmentation, in float32.

    A pass holds one batch: of ``data.eval_batch_size`` samples, and where gradients are asked for of no more than what
    training put through the network at a time. Beside it there are the losses, 4·N bytes, and of each gradient 8 bytes
    per parameter.

    Args:
        run: that is evaluated. Before another run on the same data is, this object must be gone: streaming gives up a
            folder only then.
        progress: told of every batch of the training split.

    Raises:
        ConfigError: the run's settings do not fit the dataset.
        FileNotFoundError: the dataset is not there.
    """

    def __init__(self, run: Run, progress: Progress | None = None) -> None:
        gc.collect()
        self._run, self._progress = run, progress or (lambda _: None)
        settings = run.evaluation
        description = read_description(settings.data.path)
        check_data(settings, description, 1)
        with preserved_generators():
            seed_generators(settings.seed)  # as before training, so that the first weights are those of the run
            self._task = build_task(settings.model, description)
            self._first = {name: tensor.clone() for name, tensor in self._task.network.state_dict().items()}
            self._host = Host(settings, self._task, build_loaders(settings, description, ranks=1))
        self._samples = SamplesById(self._host)
        self._parameters = [p for p in self._task.network.parameters() if p.requires_grad]

    @property
    def layout(self) -> DatasetLayout:
        """Of the training split."""
        return self._host.loaders.prunable.layout

    # Weights -----------------------------------------------------------------------------------------------------

    def weights(self, after: int) -> Mapping[str, Tensor]:
        """The network's after so many epochs, on the CPU.

        Those before the first epoch are in no checkpoint: the run's seed makes them again, as it did for the run.

        Raises:
            ConfigError: the checkpoint is of another network.
        """
        if after == 0:
            return self._first
        path = self._run.checkpoints[after]
        weights = read_weights(path, list(self._first))
        for name, tensor in weights.items():
            if tensor.shape != self._first[name].shape:
                raise ConfigError(
                    f"{path} holds {name} of shape {tuple(tensor.shape)}, but the run's config.yaml makes it "
                    f"{tuple(self._first[name].shape)}; restore the config that it was trained with."
                )
        return weights

    # Passes ------------------------------------------------------------------------------------------------------

    def look(
        self, weights: Mapping[str, Tensor], coefficients: Mapping[str, NDArray[np.floating]] | None = None
    ) -> Looked:
        """A pass over the training split in the order of the ids.

        Args:
            weights: of the network.
            coefficients: c_k of each gradient, (N,), by name.
        """
        coefficients, losses = coefficients or {}, np.empty(self.layout.num_samples, np.float32)
        num_parameters, device = sum(p.numel() for p in self._parameters), self._host.device
        gradients = {name: torch.zeros(num_parameters, dtype=torch.float64, device=device) for name in coefficients}
        parts = list(self._parts(len(losses), smaller=bool(coefficients)))
        with self._evaluating(weights), torch.set_grad_enabled(bool(coefficients)):
            ids = np.arange(len(losses))
            batches = self._samples.batches(ids[part] for part in parts)
            for part, batch in zip(parts, batches, strict=True):
                own = self._task.sample_losses(self._task.forward(self._host.network, batch), batch)
                losses[part] = own.detach().float().cpu().numpy()
                for name, factors in coefficients.items():
                    if factors[part].any():
                        weighted = own @ torch.as_tensor(factors[part]).to(own)
                        gradients[name] += flat_gradient(weighted, self._parameters)
                self._progress(len(own))
        return Looked(losses=losses, gradients=gradients)

    def test(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """The test metrics, by name, as training reports them."""
        with self._evaluating(weights):
            return self._host.evaluate()

    @contextmanager
    def _evaluating(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        load_weights(self._host.network, weights)
        with self._samples.evaluating():
            yield

    def _parts(self, samples: int, *, smaller: bool) -> Iterator[slice]:
        """The batches of a pass."""
        settings = self._run.settings
        size = settings.data.eval_batch_size
        if smaller:
            size = min(size, settings.device_train_microbatch_size or settings.data.batch_size)
        return (slice(start, min(start + size, samples)) for start in range(0, samples, size))
