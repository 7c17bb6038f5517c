"""Models of five families, and a training step around a probe as a trainer makes it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ted_stream.pruning.probe import StepProbe

CLASSES = 5
VOCABULARY = 61
LENGTH = 12


class Classifier(nn.Module):
    """Takes a batch (inputs, targets), as Composer's models do."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(self.body(batch[0]))


class SequenceMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class CausalLM(nn.Module):
    """Says that labels are shifted, like Composer's HuggingFaceModel."""

    shift_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.lm = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=LENGTH,
                n_embd=32,
                n_layer=2,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=0.2,  # far from uniform predictions
            )
        )

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def convnet(*, bias: bool = True, norm: bool = False) -> Classifier:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, stride=2, bias=bias)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [conv, nn.ReLU()]

    body = nn.Sequential(*block(3, 8), *block(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, nn.Linear(12, CLASSES, bias=bias))


def mlp(*, bias: bool = True) -> Classifier:
    layers = [nn.Flatten(), nn.Linear(192, 24, bias=bias), nn.ReLU(), nn.Linear(24, 16, bias=bias), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), nn.Linear(16, CLASSES, bias=bias))


def transformer() -> Classifier:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    return Classifier(nn.Sequential(nn.Linear(8, 16), encoder, SequenceMean()), nn.Linear(16, CLASSES))


def images(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)  # the first samples are the same at every size
    inputs = torch.stack([torch.randn(3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(size)])
    return inputs, torch.arange(size) * 3 % CLASSES


def sequences(size: int) -> tuple[Tensor, Tensor]:
    inputs, targets = images(size)
    return inputs.reshape(size, 24, 8), targets


def tokens(size: int) -> dict[str, Tensor]:
    """Prompts of unequal length, whose labels are -100; then answers of unequal length; then padding."""
    input_ids = torch.zeros(size, LENGTH, dtype=torch.long)
    labels = torch.full((size, LENGTH), -100)
    attention_mask = torch.zeros(size, LENGTH, dtype=torch.long)
    for row in range(size):
        prompt, end = row % 4, 5 + row * 5 % 8  # a prompt of length 0 labels the first token, which nothing predicts
        generator = torch.Generator().manual_seed(row)
        input_ids[row, :end] = torch.randint(1, VOCABULARY, (end,), generator=generator)
        labels[row, prompt:end] = input_ids[row, prompt:end]
        attention_mask[row, :end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@dataclass(frozen=True)
class Family:
    name: str
    build: Callable[[], nn.Module]
    make_batch: Callable[[int], Any]
    couples_samples: bool = False
    is_language_model: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The same weights at every call."""
        torch.manual_seed(0)
        return self.build().to(torch.float64).to(dtype)

    def batch(self, size: int, dtype: torch.dtype = torch.float64) -> Any:
        batch = self.make_batch(size)
        return batch if self.is_language_model else (batch[0].to(dtype), batch[1])

    def output_layer(self, model: Any) -> nn.Module:
        return model.lm.lm_head if self.is_language_model else model.head


FAMILIES = [
    Family("convnet", convnet, images),
    Family("convnet_batchnorm", lambda: convnet(norm=True), images, couples_samples=True),
    Family("mlp", mlp, images),
    Family("transformer", transformer, sequences),
    Family("causal_lm", CausalLM, tokens, is_language_model=True),
]


def logits_of(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def mean_loss(outputs: Any, batch: Any) -> Tensor:
    """What is trained: the mean over samples, or over all target tokens of the microbatch."""
    logits = logits_of(outputs)
    if isinstance(batch, dict):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    return F.cross_entropy(logits, batch[1])


def own_losses(outputs: Any, batch: Any) -> Tensor:
    """(B,) ℓ_k: a language model's mean over the sample's own targets, picked out one by one."""
    log_p = logits_of(outputs).log_softmax(-1)
    if not isinstance(batch, dict):
        return torch.stack([-row[target] for row, target in zip(log_p, batch[1].tolist(), strict=True)])
    losses = []
    for row, labels in zip(log_p, batch["labels"].tolist(), strict=True):
        terms = [-row[i - 1, labels[i]] for i in range(1, len(labels)) if labels[i] != -100]
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses)


def rows(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, dict):
        return {name: tensor[start:stop] for name, tensor in batch.items()}
    return tuple(tensor[start:stop] for tensor in batch)


def microbatches(batch: Any, size: int, microbatch: int) -> Iterator[Any]:
    for start in range(0, size, microbatch):
        yield rows(batch, start, min(start + microbatch, size))


def probe_step(
    model: Any,
    batch: Any,
    probe: StepProbe,
    *,
    weights: Tensor | None = None,
    microbatch: int | None = None,
    keep_ratio: float = 1.0,
    loss_scale: float = 1.0,
    loss: Callable[[Any, Any], Tensor] = mean_loss,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """One step with the loss times (k / B)·scale / r per microbatch; what an attached probe measured of its samples.

    A loss vector is backpropagated as its mean. Gradients stay in the parameters.
    """
    model.zero_grad()
    size = len(batch["input_ids"] if isinstance(batch, dict) else batch[0])
    measured, start = [], 0
    for part in microbatches(batch, size, microbatch or size):
        count = len(part["input_ids"] if isinstance(part, dict) else part[0])
        part = probe.before_forward(part, None if weights is None else weights[start : start + count])
        with precision():
            outputs = model(part)
            unscaled = loss(outputs, part)
        probe.before_backward(part, outputs, unscaled)
        (unscaled * (count / size * loss_scale / keep_ratio)).mean().backward()
        values = probe.after_backward()
        measured += [] if values is None else [values]
        start += count
    return torch.cat(measured) if measured else torch.empty(0)
