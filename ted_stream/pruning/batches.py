"""What a training batch is made of: its size, its targets, each sample's share in the mean loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORE_INDEX", "batch_size", "loss_shares", "per_sample_cross_entropy", "targets_of", "tensors_of"]

IGNORE_INDEX = -100


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of nested mappings and sequences, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return [tensor for item in batch for tensor in tensors_of(item)]
    return []


def batch_size(batch: Any) -> int:
    """The number of samples: the length of the batch's first tensor.

    Raises:
        ValueError: if the batch holds no tensor.
    """
    tensors = tensors_of(batch)
    if not tensors:
        raise ValueError(f"A batch of type {type(batch).__name__} holds no tensor; collate samples into tensors.")
    return len(tensors[0])


def targets_of(batch: Any) -> Tensor:
    """The targets: a mapping's ``labels`` (or ``label``, ``targets``, ``target``), a sequence's second element.

    Raises:
        ValueError: if there are none.
    """
    if isinstance(batch, Mapping):
        for name in ("labels", "label", "targets", "target"):
            if name in batch:
                return batch[name]
        raise ValueError(f"The batch has no 'labels' among {sorted(map(str, batch))}; name the targets 'labels'.")
    if isinstance(batch, Sequence) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    raise ValueError(
        f"No targets in a batch of type {type(batch).__name__}: expected a mapping with 'labels', or (inputs, targets)."
    )


def _predicted(targets: Tensor, *, shifted: bool) -> Tensor:
    """The targets that the loss counts: a causal model never predicts the first token."""
    return targets[:, 1:] if shifted and targets.ndim > 1 else targets


def loss_shares(batch: Any, *, shifted: bool) -> tuple[Tensor | int, Tensor | int]:
    """Each sample's share in a mean loss: its own weight over the weight of all.

    A mean over integer targets, several per sample (tokens, pixels), weighs sample k by its own n_k targets, those that
    are not -100, and all by Σ n. One target per sample, or a mean over anything else, weighs every sample by 1. A
    sample without targets is no part of the loss; its weight is 1 as well, so that nothing is divided by zero.

    Args:
        batch: a microbatch.
        shifted: whether the model predicts the next token, so that a row's first target does not count.

    Returns:
        The own weights, (B,) int64 or 1, and that of all, () int64 or an int.
    """
    try:
        targets = targets_of(batch)
    except ValueError:  # a model that brings its own targets: its loss is a mean over samples
        return 1, batch_size(batch)
    if targets.is_floating_point():
        return 1, batch_size(batch)
    counted = _predicted(targets, shifted=shifted).ne(IGNORE_INDEX)
    if counted.ndim == 1:
        return 1, counted.sum()
    counts = counted.flatten(1).sum(1)
    return counts.clamp(min=1), counts.sum()


def per_sample_cross_entropy(outputs: Any, batch: Any, *, shifted: bool) -> Tensor:
    """The cross-entropy ℓ_k of every sample; over several targets, the mean over the sample's own.

    Args:
        outputs: logits, (B, C), (B, S, C) or (B, C, H, W), or a model output that holds them as ``logits``.
        batch: with targets (B,), (B, S), (B, H, W) or class probabilities (B, C).
        shifted: whether position i predicts target i + 1.

    Returns:
        (B,) float32 (float64 for float64 logits), detached.
    """
    logits = outputs if isinstance(outputs, Tensor) else outputs["logits"]
    logits = logits.detach()
    if logits.dtype is not torch.float64:
        logits = logits.float()
    targets = targets_of(batch)
    if targets.ndim < 2 or targets.is_floating_point():
        return F.cross_entropy(logits, targets, reduction="none")
    targets = _predicted(targets, shifted=shifted)
    logits = logits[:, :-1] if shifted else logits
    if logits.shape[:-1] == targets.shape:
        logits = logits.movedim(-1, 1)  # cross_entropy wants the classes second
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.flatten(1).sum(1) / targets.ne(IGNORE_INDEX).flatten(1).sum(1).clamp(min=1)
