"""What a model is trained to do: its forward pass, loss and test metrics, as plain functions of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torchmetrics import MeanSquaredError, Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassMatthewsCorrCoef

from ..corpora.instructions import IGNORED
from ..corpora.prepared import Description
from .hub_models import bert, gpt, pretrained
from .metrics import CrossEntropy, LanguageCrossEntropy
from .networks import IMAGE_MODELS
from .settings import CHOICES, Model

__all__ = ["Classification", "LanguageModelling", "Task", "TextClassification", "build_task"]


class Task(Protocol):
    """A network and what it is trained to do, whatever trains it."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def loss_function(self) -> Callable[[Any, Any], Tensor] | None:
        """The loss of (outputs, batch); ``None`` where the network makes it in its forward pass."""
        ...

    def forward(self, model: Callable[..., Any], batch: Any) -> Any:
        """The outputs of the network, as it is called (compiled, in DDP)."""
        ...

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """The loss to differentiate, ()."""
        ...

    def sample_losses(self, outputs: Any, batch: Any) -> Tensor:
        """Every sample's own loss, (B,), with a graph; over several targets, the mean over the sample's own."""
        ...

    def evaluate(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Outputs of the network and targets, as the test metrics take them."""
        ...

    def metrics(self) -> list[Metric]:
        """What it is tested by, new; each is called by the name of its class."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross entropy over classes; batches are (images, labels).

    Attributes:
        network: from images to logits.
        classes: how many.
        label_smoothing: of the training loss.
    """

    network: nn.Module
    classes: int
    label_smoothing: float = 0.0

    @property
    def loss_function(self) -> Callable[[Any, Any], Tensor]:
        """(see Task)."""
        return self.loss

    def forward(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """(see Task)."""
        return model(batch[0])

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        """(see Task)."""
        return cross_entropy(outputs, batch[1], label_smoothing=self.label_smoothing)

    def sample_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """(see Task)."""
        return cross_entropy(outputs, batch[1], label_smoothing=self.label_smoothing, reduction="none")

    def evaluate(self, batch: Any) -> tuple[Tensor, Tensor]:
        """(see Task); (B, classes) logits and (B,) classes."""
        return self.network(batch[0]), batch[1]

    def metrics(self) -> list[Metric]:
        """(see Task)."""
        return [_accuracy(self.classes), CrossEntropy()]


@dataclass(frozen=True)
class _OfTransformers:
    """By a Hugging Face model, which makes the loss itself; batches are mappings."""

    network: nn.Module

    @property
    def loss_function(self) -> None:
        """(see Task)."""
        return

    def forward(self, model: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        """(see Task)."""
        return model(**self._inputs(batch))

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """(see Task)."""
        del batch
        return outputs.loss

    @cached_property
    def _takes_segments(self) -> bool:
        network: Any = self.network
        base = network.get_base_model() if hasattr(network, "get_base_model") else network  # of adapters
        return "token_type_ids" in signature(base.forward).parameters

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as the model takes it: some have no segments, of which their tokenizers tell all the same."""
        return {name: value for name, value in batch.items() if name != "token_type_ids" or self._takes_segments}

    def _logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Of the network itself, which makes no loss of them without labels."""
        return self.network(**{name: value for name, value in self._inputs(batch).items() if name != "labels"}).logits


@dataclass(frozen=True)
class LanguageModelling(_OfTransformers):
    """Token-mean cross entropy of a Hugging Face causal language model; batches are mappings.

    Attributes:
        network: the model, which makes the loss itself.
    """

    def sample_losses(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """(see Task); 0 for a sample without targets."""
        targets = _next_tokens(batch)
        losses = cross_entropy(outputs.logits.movedim(-1, 1), targets, ignore_index=IGNORED, reduction="none")
        return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)

    def evaluate(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(see Task); (B, S, V) logits and (B, S) the token that each position predicts."""
        return self._logits(batch), _next_tokens(batch)

    def metrics(self) -> list[Metric]:
        """(see Task)."""
        return [LanguageCrossEntropy()]


@dataclass(frozen=True)
class TextClassification(_OfTransformers):
    """A class, or a score, of texts, by a Hugging Face model with such a head; batches are mappings.

    Attributes:
        network: the model, which makes the loss itself: cross entropy, or of scores the squared error.
        classes: how many; 0 of scores.
    """

    classes: int

    def sample_losses(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """(see Task)."""
        if self.classes:
            return cross_entropy(outputs.logits, batch["labels"], reduction="none")
        return (outputs.logits.squeeze(1) - batch["labels"]).square()

    def evaluate(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(see Task); (B, classes) logits and (B,) classes, or (B,) predicted and true scores."""
        logits = self._logits(batch)
        return logits if self.classes else logits.squeeze(1).float(), batch["labels"]

    def metrics(self) -> list[Metric]:
        """(see Task): those of GLUE, and the loss."""
        if not self.classes:
            return [PearsonCorrCoef(), SpearmanCorrCoef(), MeanSquaredError()]
        return [_accuracy(self.classes), MulticlassMatthewsCorrCoef(self.classes), CrossEntropy()]


def _accuracy(classes: int) -> Metric:
    return MulticlassAccuracy(num_classes=classes, average="micro")


def _next_tokens(batch: Mapping[str, Any]) -> Tensor:
    """What each position predicts, (B, S) int64."""
    return pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)


def build_task(options: Model, description: Description, *, is_trained: bool = True) -> Task:
    """The model of a config and its task; what is random is drawn from torch's global generator.

    Args:
        options: the config's section.
        description: of the dataset that it is trained on.
        is_trained: False where the weights that the config names are asked as they are.

    Raises:
        ConfigError: weights that cannot be loaded, are not for such data, or are not all there.
    """
    classes = len(description.classes)
    if options.name in ("causal_lm", "sequence_classifier"):
        network = pretrained(options, description, is_trained=is_trained)
        return LanguageModelling(network) if options.name == "causal_lm" else TextClassification(network, classes)
    given = {name: getattr(options, name) for name in sorted(CHOICES["model"][options.name])}
    given = {name: value for name, value in given.items() if value is not None}
    if options.name == "gpt":
        return LanguageModelling(gpt(description, **given))
    if options.name == "bert":
        return TextClassification(bert(description, **given), classes)
    smoothing, channels_last = given.pop("label_smoothing", 0.0), given.pop("channels_last", False)
    network = IMAGE_MODELS[options.name](classes=classes, in_channels=len(description.mean), **given)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Classification(network, classes, smoothing)
