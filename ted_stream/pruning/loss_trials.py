"""What a loss function makes of classes, of targets that do not count, and of logits, tried on a few rows."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ted_stream.pruning.batches import (
    IGNORE_INDEX,
    class_targets,
    logits_of,
    targets_of,
    tensors_of,
    with_logits,
    with_targets,
)
from ted_stream.pruning.loss_kinds import FEW, LossFunction, Rows, are_cross_entropies, tolerance
from ted_stream.pruning.measures import Measure

__all__ = ["is_uneven", "refuse_other_predictions"]

_MOST_CLASSES = 1024  # that are tried as cross-entropies
_MOST_ALONE = 32  # that are tried one by one


def _are_close(value: Tensor, other: Tensor) -> bool:
    value, other = value.double(), other.double()
    return bool((value - other).abs() <= tolerance(value.dtype) * other.abs() + 1e-6)


def _classes(rows: Rows) -> tuple[Tensor, int] | None:
    """Whole-numbered targets, (n, …), and how many classes the logits have; ``None`` where there are none."""
    try:
        return class_targets(rows.outputs, rows.batch)
    except ValueError:
        return None


def _relabelled(rows: Rows, labels: Tensor) -> Rows:
    """Rows with other targets, where they count: (n, 1, …) one for all that a row has, or one for each."""
    targets = targets_of(rows.batch)
    changed = labels.where(targets != IGNORE_INDEX, targets).to(targets.dtype)
    return replace(rows, batch=with_targets(rows.batch, changed))


def is_uneven(function: LossFunction, rows: Rows) -> bool:
    """Whether the samples' own losses are others than cross-entropies for classes that a microbatch may lack.

    All classes, or as many as are cheap, stand in for the targets of the rows; and where samples have several targets,
    half of one sample's are left out. This is tried on the CPU, where a label that the loss does not know is an error
    and is passed over; on a GPU it would end the process. A loss that needs the GPU gets no labels beyond those that it
    has seen. Waits for the device.

    Raises:
        ValueError: if the loss of such rows is neither the mean nor the sum of their own: it weighs classes, or samples
            by something else than their counted targets.
    """
    found = _classes(rows)
    if found is None:
        return False
    targets, classes = found
    leaves_out = True
    if _quietly(lambda: rows.on_cpu().together(function)) is not None:
        rows, targets = rows.on_cpu(), targets.cpu()
    else:
        classes, leaves_out = int(targets.max()) + 1, bool((targets == IGNORE_INDEX).any())
    per_row = max(1, sum(tensor.numel() for tensor in tensors_of((rows.outputs, rows.batch))) // rows.size)
    most = min(classes, _MOST_CLASSES, 4 * FEW // per_row)
    is_other = False
    if most > 1:
        labels = torch.linspace(0, classes - 1, most, device=targets.device).long()
        # Every part holds the first class, so that no two parts are even in themselves alone.
        for part in labels[1:].split(max(1, FEW // per_row - 1)):
            is_other |= _try_labels(function, rows, torch.cat([labels[:1], part]))
    if leaves_out and targets.ndim > 1 and targets[0].numel() > 1:
        halved = targets[:1].clone()
        halved.view(-1)[1::2] = IGNORE_INDEX
        some = replace(rows, batch=with_targets(rows.batch, torch.cat([halved, targets[1:]])))
        _tried(function, some, "with half of one sample's targets set to -100, which should not count")
    return is_other


def _try_labels(function: LossFunction, rows: Rows, labels: Tensor) -> bool:
    """Whether the losses of rows of these classes are no cross-entropies."""
    ndim = targets_of(rows.batch).ndim

    def of(some: Tensor) -> Rows:
        return _relabelled(
            rows.take(torch.arange(len(some), device=some.device) % rows.size), some.view(-1, *[1] * (ndim - 1))
        )

    several = of(labels)
    losses, value = several.cross_entropies(), _quietly(lambda: several.together(function))
    if losses is None or value is None:
        return False  # the loss takes no such targets, for a reason of its own
    if any(_are_close(value, fitting) for fitting in several.mean_and_total(losses)):
        return False
    few = labels[torch.linspace(0, len(labels) - 1, min(len(labels), _MOST_ALONE)).long().to(labels.device)]
    return _tried(function, of(few), f"with a sample of each of the classes {int(few[0])} to {int(few[-1])}")


def _tried(function: LossFunction, rows: Rows, what: str) -> bool:
    """Whether the rows' own losses are no cross-entropies, of a loss that is a mean or a sum of them."""
    value, losses = _quietly(lambda: rows.together(function)), _quietly(lambda: rows.alone(function))
    if value is None or losses is None:
        return False
    mean, total = rows.mean_and_total(losses)
    are_numbers = math.isfinite(float(mean)) and math.isfinite(float(value))
    if are_numbers and not _are_close(value, mean) and not _are_close(value, total):
        raise ValueError(
            f"On rows of the first microbatch {what}, the loss is {float(value):.6g}; the mean of their own losses is "
            f"{float(mean):.6g} and the sum {float(total):.6g}. A loss that is neither weighs classes, or samples by "
            "something else than their targets, which scores would mirror. Let the loss be a plain mean over samples "
            "(over all tokens), or give it as a vector, a loss per sample; or choose a measure that does not need it, "
            "such as ErrorNorm."
        )
    return not bool(are_cross_entropies(rows, losses))


def _quietly(evaluate: Callable[[], Tensor]) -> Tensor | None:
    """A value; ``None`` where there is none for such rows."""
    try:
        return evaluate()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def refuse_other_predictions(measure: Measure, function: LossFunction, rows: Rows) -> None:
    """Refuse outputs that are no logits, and targets that the loss knows nothing of; waits for the device.

    Raises:
        ValueError: if the loss is not the cross-entropy of the outputs and the targets, and hangs on more than their
            softmax, or not on these targets, or on others than those of the same position.
    """
    logits, found = logits_of(rows.outputs), _classes(rows)
    assert logits is not None, "the measure has seen them"
    shifted = replace(rows, shifted=not rows.shifted)
    try:
        losses = rows.alone(function)
        if bool(are_cross_entropies(rows, losses)):
            return
        is_shifted = found is not None and found[0].ndim > 1 and bool(are_cross_entropies(shifted, losses))
        value = rows.together(function)
        moved = replace(rows, outputs=with_logits(rows.outputs, logits + 1)).together(function)
        is_blind = False
        if found is not None and measure.needs_targets:
            targets, classes = found
            # Within the classes that were seen: on a GPU another might end the process.
            others = (targets.clamp(min=0) + 1) % (targets.max() + 1).clamp(min=2, max=classes)
            is_blind = bool(_relabelled(rows, others).together(function) == value)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        warnings.warn(
            f"Whether the loss is made of the logits and the targets that {measure!r} looks at could not be tried on "
            f"single rows: {error!r}.",
            stacklevel=2,
        )
        return
    if is_shifted:
        raise ValueError(
            f"The loss scores each position against the target of {'the same' if rows.shifted else 'the next'} one, "
            f"which {measure!r} cannot know. Set model.shift_labels = {not rows.shifted}, an attribute of the model "
            "that says so."
        )
    if not _are_close(moved, value):
        raise ValueError(
            f"The loss changes from {float(value):.6g} to {float(moved):.6g} when 1 is added to all outputs of a "
            "sample, so they are no logits whose softmax it takes, but, say, probabilities, or one logit per label; "
            f"{measure!r} takes their softmax. Let the model return logits, or choose the measure MaskGradient or Loss."
        )
    if is_blind:
        raise ValueError(
            f"The loss does not change with the targets that were found in the batch, so {measure!r} would look at "
            "others than it does. Let the batch hold the classes as 'labels' or as its second element, or choose the "
            "measure MaskGradient or Loss."
        )
    warnings.warn(
        f"The loss is not the cross-entropy of the model's outputs and the targets (smoothed labels, a scale or a "
        f"margin within the loss); {measure!r} goes by the softmax of the outputs as they are.",
        stacklevel=2,
    )
