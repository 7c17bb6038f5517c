"""What a model is trained to do: its forward pass, loss and test metrics, as plain functions of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ..corpora.instructions import IGNORED
from ..corpora.prepared import Description
from .networks import IMAGE_MODELS, gpt
from .settings import CHOICES, Model

__all__ = ["Classification", "LanguageModelling", "Task", "build_task"]

Sums = dict[str, tuple[Tensor, Tensor]]


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

    def evaluate(self, batch: Any) -> Sums:
        """A batch's part in every test metric: a sum and a count, () each; the metric is the ratio of their totals."""
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

    def evaluate(self, batch: Any) -> Sums:
        """Accuracy over samples, and the mean of the batches' cross entropies, as Composer's metrics have them."""
        logits, labels = self.network(batch[0]), batch[1]
        hits = (logits.argmax(1) == labels).sum()
        return {
            "MulticlassAccuracy": (hits, torch.full_like(hits, len(labels))),
            "CrossEntropy": (cross_entropy(logits, labels).float(), torch.ones_like(hits)),
        }


@dataclass(frozen=True)
class LanguageModelling:
    """Token-mean cross entropy of a Hugging Face causal language model; batches are mappings.

    Attributes:
        network: the model, which makes the loss itself.
    """

    network: nn.Module

    @property
    def loss_function(self) -> None:
        """(see Task)."""
        return

    def forward(self, model: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        """(see Task)."""
        return model(**batch)

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """(see Task)."""
        del batch
        return outputs.loss

    def sample_losses(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """(see Task); 0 for a sample without targets."""
        targets = _next_tokens(batch)
        losses = cross_entropy(outputs.logits.movedim(-1, 1), targets, ignore_index=IGNORED, reduction="none")
        return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)

    def evaluate(self, batch: Mapping[str, Any]) -> Sums:
        """Cross entropy over target tokens."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = self.network(**inputs).logits
        targets = _next_tokens(batch).flatten()
        total = cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
        return {"LanguageCrossEntropy": (total.float(), (targets != IGNORED).sum())}


def _next_tokens(batch: Mapping[str, Any]) -> Tensor:
    """What each position predicts, (B, S) int64."""
    return pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)


def build_task(options: Model, description: Description) -> Task:
    """The model of a config, randomly initialised from torch's global generator, and its task.

    Args:
        options: the config's section.
        description: of the dataset that it is trained on.
    """
    given = {name: getattr(options, name) for name in sorted(CHOICES["model"][options.name])}
    given = {name: value for name, value in given.items() if value is not None}
    if options.name == "gpt":
        return LanguageModelling(gpt(vocab_size=description.vocab_size, max_length=description.max_length, **given))
    smoothing, channels_last = given.pop("label_smoothing", 0.0), given.pop("channels_last", False)
    classes = len(description.classes)
    network = IMAGE_MODELS[options.name](classes=classes, in_channels=len(description.mean), **given)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Classification(network, classes, smoothing)
