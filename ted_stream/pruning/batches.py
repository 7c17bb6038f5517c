"""What a training batch is made of: its size, its targets, each sample's share in the mean loss."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ted_stream.pruning.predictions import IGNORE_INDEX, Predictions
from ted_stream.pruning.segments import Segments

__all__ = [
    "IGNORE_INDEX",
    "batch_size",
    "class_labels",
    "class_targets",
    "like_sequence",
    "logits_of",
    "loss_shares",
    "map_tensors",
    "per_sample_cross_entropy",
    "replace_first_tensor",
    "split_rows",
    "take_rows",
    "targets_of",
    "tensors_of",
    "total_loss",
    "with_logits",
    "with_targets",
    "within_classes",
]

_TARGETS = ("labels", "label", "targets", "target")


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of nested mappings and sequences, in order; of an object that holds logits, those."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return [tensor for item in batch for tensor in tensors_of(item)]
    logits = logits_of(batch)
    return [] if logits is None else [logits]


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting of the same types, with every tensor of :func:`tensors_of` mapped."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped: Any = copy.copy(tree)  # a Hugging Face output or batch stays one
        for key, item in tree.items():
            mapped[key] = map_tensors(item, function)
        return mapped
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return like_sequence(tree, [map_tensors(item, function) for item in tree])
    logits = logits_of(tree)
    return tree if logits is None else with_logits(tree, function(logits))


def take_rows(tree: Any, rows: Tensor, size: int) -> Any:
    """The rows of every tensor whose first axis is that of the samples; the rest as it is.

    Args:
        tree: a batch, or a model's outputs.
        rows: (n,) int64 indices on the tensors' device.
        size: B, the samples of the batch.
    """
    return map_tensors(tree, lambda tensor: tensor[rows] if tensor.shape[:1] == (size,) else tensor)


def replace_first_tensor(batch: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """The batch with the first of ``tensors_of(batch)`` replaced; what was given stays unchanged."""
    if isinstance(batch, Tensor):
        return replace(batch)
    changed: Any
    if isinstance(batch, Mapping):
        first = next(key for key, item in batch.items() if tensors_of(item))
        changed = copy.copy(batch)  # a Hugging Face batch stays one
        changed[first] = replace_first_tensor(batch[first], replace)
        return changed
    first = next(index for index, item in enumerate(batch) if tensors_of(item))
    changed = [*batch[:first], replace_first_tensor(batch[first], replace), *batch[first + 1 :]]
    return like_sequence(batch, changed)


def like_sequence(sequence: Any, items: list[Any]) -> Any:
    """The items as a sequence of the same kind: a named tuple, a tuple or a list."""
    if isinstance(sequence, tuple):
        return type(sequence)(*items) if hasattr(sequence, "_fields") else tuple(items)
    return items


def batch_size(batch: Any) -> int:
    """The number of samples: the length of the batch's first tensor that is no single number.

    Raises:
        ValueError: if the batch holds no such tensor.
    """
    tensors = [tensor for tensor in tensors_of(batch) if tensor.ndim]
    if not tensors:
        raise ValueError(f"A batch of type {type(batch).__name__} holds no tensor; collate samples into tensors.")
    return len(tensors[0])


def split_rows(batch: Any, size: int) -> Iterator[tuple[slice, Any]]:
    """The batch in parts of ``size`` rows in order, the last perhaps of fewer: which rows, and the part."""
    total = batch_size(batch)
    for first in range(0, total, size):
        rows = slice(first, min(first + size, total))
        yield rows, map_tensors(batch, lambda whole, rows=rows: whole[rows] if whole.shape[:1] == (total,) else whole)


def targets_of(batch: Any) -> Tensor:
    """The targets: a mapping's ``labels`` (or ``label``, ``targets``, ``target``), a sequence's second element.

    Raises:
        ValueError: if there are none.
    """
    if isinstance(batch, Mapping):
        for name in _TARGETS:
            if isinstance(batch.get(name), Tensor):
                return batch[name]
        raise ValueError(
            f"The batch has no tensor 'labels' among {sorted(map(str, batch))}; name the targets 'labels'."
        )
    if isinstance(batch, Sequence) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    raise ValueError(
        f"No targets in a batch of type {type(batch).__name__}: expected a mapping with 'labels', or (inputs, targets)."
    )


def logits_of(outputs: Any) -> Tensor | None:
    """A model's logits: its outputs, or what they hold as ``logits``; ``None`` where it cannot be told."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    elif not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", None)
    return outputs if isinstance(outputs, Tensor) and outputs.ndim else None


def with_targets(batch: Any, targets: Tensor) -> Any:
    """The batch with other targets in the place of those of :func:`targets_of`; what was given stays unchanged."""
    if isinstance(batch, Mapping):
        changed: Any = copy.copy(batch)
        changed[next(name for name in _TARGETS if isinstance(batch.get(name), Tensor))] = targets
        return changed
    return like_sequence(batch, [batch[0], targets, *batch[2:]])


def with_logits(outputs: Any, logits: Tensor) -> Any:
    """The outputs with other logits in the place of those of :func:`logits_of`; what was given stays unchanged."""
    if isinstance(outputs, Tensor):
        return logits
    changed = copy.copy(outputs)
    if isinstance(outputs, Mapping):
        changed["logits"] = logits
    else:
        changed.logits = logits
    return changed


def total_loss(loss: Any) -> Tensor:
    """All of a loss: a tensor, a mapping's ``total``, else the sum of the means of what a mapping or sequence holds."""
    if isinstance(loss, Tensor):
        return loss
    if isinstance(loss, Mapping):
        if "total" in loss:
            return loss["total"]
        loss = list(loss.values())
    return loss[0] if len(loss) == 1 else torch.stack([part.mean() for part in loss]).sum()


def _predicted(targets: Tensor, *, shifted: bool) -> Tensor:
    """The targets that the loss counts: a causal model never predicts the first token."""
    return targets[:, 1:] if shifted and targets.ndim > 1 else targets


def loss_shares(batch: Any, *, shifted: bool, segments: Segments | None = None) -> tuple[Tensor | int, Tensor | int]:
    """Each sample's share in a mean loss: its own weight over the weight of all.

    A mean over integer targets, several per sample (tokens, pixels), weighs sample k by its own n_k targets, those that
    are not -100, and all by Σ n. One target per sample, or a mean over anything else, weighs every sample by 1. A
    sample without targets is no part of the loss; its weight is 1 as well, so that nothing is divided by zero.

    Args:
        batch: a microbatch.
        shifted: whether the model predicts the next token, so that a row's first target does not count.
        segments: where samples share rows.

    Returns:
        The own weights, (B,) int64, (n,) where samples share rows, or 1, and that of all, () int64 or an int.

    Raises:
        ValueError: if samples share rows, and not every token has a target, or -100 for none.
    """
    if segments is not None:
        counted = _counted_tokens(batch, segments, shifted=shifted)
        return segments.sums(counted).clamp(min=1), counted.sum()
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


def _counted_tokens(batch: Any, segments: Segments, *, shifted: bool) -> Tensor:
    """(R, S) whether a token is a target, where samples share rows."""
    targets = targets_of(batch)
    if targets.shape != segments.owners.shape or targets.is_floating_point():
        raise ValueError(
            f"Samples are packed into rows of {tuple(segments.owners.shape)} tokens, but the targets are "
            f"{tuple(targets.shape)} of {targets.dtype}, so it is not known whose each is. Give a whole "
            f"number for every token, {IGNORE_INDEX} where none counts, or a row for every sample."
        )
    counted = targets.ne(IGNORE_INDEX)
    return counted & (torch.arange(counted.shape[1], device=counted.device) > 0) if shifted else counted


def class_labels(batch: Any) -> Tensor:
    """(B,) int64, the class of every sample, -100 where it has none.

    Raises:
        ValueError: if the targets are no whole numbers, one for each sample.
    """
    targets = targets_of(batch)
    if targets.ndim != 1 or targets.is_floating_point():
        raise ValueError(
            f"The targets have shape {tuple(targets.shape)} and dtype {targets.dtype}, but samples are told apart by "
            "class, which asks for one whole number for each. Leave out what mixes classes, or choose a method that "
            "does not look at them."
        )
    return targets.detach().long()


def class_targets(outputs: Any, batch: Any) -> tuple[Tensor, int] | None:
    """Whole-numbered targets, (B, …), and how many classes the logits tell apart; ``None`` where there are none.

    Raises:
        ValueError: if there are no targets, or they do not fit the logits.
    """
    logits, targets = logits_of(outputs), targets_of(batch)
    if logits is None or targets.is_floating_point():
        return None
    return targets, Predictions(logits, targets, shifted=False).logits.shape[-1]


def within_classes(outputs: Any, batch: Any) -> Any:
    """The batch with whole-numbered targets moved into the range of the logits' classes, where they are beyond it.

    On a GPU a class that there is not would end the process, before anybody could say what is wrong with it.
    """
    found = class_targets(outputs, batch)
    if found is None:
        return batch
    targets, classes = found
    return with_targets(batch, targets.clamp(0, classes - 1).where(targets != IGNORE_INDEX, targets))


def per_sample_cross_entropy(outputs: Any, batch: Any, *, shifted: bool, segments: Segments | None = None) -> Tensor:
    """The cross-entropy ℓ_k of every sample; over several targets, the mean over the sample's own.

    Args:
        outputs: logits, (B, C), (B, S, C) or (B, C, H, W), or a model output that holds them as ``logits``.
        batch: with targets (B,), (B, S), (B, H, W) or class probabilities (B, C).
        shifted: whether position i predicts target i + 1.
        segments: where samples share rows.

    Returns:
        (B,) float32 (float64 for float64 logits), (n,) where samples share rows, detached. Of the logits no more than
        2^24 are widened at a time.

    Raises:
        ValueError: if there are no logits, no targets, or they do not fit each other.
    """
    logits = logits_of(outputs)
    if logits is None:
        raise ValueError(
            f"Outputs of type {type(outputs).__name__} hold no logits: let the model return them, alone or as the "
            "entry 'logits'."
        )
    predictions = Predictions(logits, targets_of(batch), shifted=shifted, segments=segments)
    return predictions.means(lambda z, y: F.cross_entropy(z, y, reduction="none"))
