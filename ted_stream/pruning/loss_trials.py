"""What a loss function makes of classes and of logits, tried on a few rows."""

import math
import warnings

import torch
from torch import Tensor

from ted_stream.pruning.batches import IGNORE_INDEX, logits_of, targets_of, tensors_of, with_logits, with_targets
from ted_stream.pruning.loss_kinds import FEW, LossFunction, Rows, are_cross_entropies, tolerance
from ted_stream.pruning.measures import Measure
from ted_stream.pruning.predictions import Predictions

__all__ = ["refuse_other_predictions", "refuse_uneven_classes"]

_MOST_CLASSES = 1024


def _are_close(value: Tensor, other: Tensor) -> bool:
    value, other = value.double(), other.double()
    return bool((value - other).abs() <= tolerance(value.dtype) * other.abs() + 1e-6)


def _classes(rows: Rows) -> tuple[Tensor, int] | None:
    """Whole-numbered targets, (n, …), and how many classes the logits have; ``None`` where there are none."""
    logits = logits_of(rows.outputs)
    try:
        targets = targets_of(rows.batch)
        if logits is None or targets.is_floating_point():
            return None
        return targets, Predictions(logits, targets, shifted=False).logits.shape[-1]
    except ValueError:
        return None


def _relabelled(rows: Rows, labels: Tensor) -> Rows:
    """Rows with other targets, where they count: (n, 1, …) one for all that a row has, or one for each."""
    targets = targets_of(rows.batch)
    return Rows(
        rows.outputs, with_targets(rows.batch, labels.where(targets != IGNORE_INDEX, targets)), rows.size, rows.shifted
    )


def refuse_uneven_classes(function: LossFunction, rows: Rows) -> None:
    """Refuse a loss that weighs classes: rows of the first microbatch may be of few.

    All classes, or 1024 among more, stand in for the targets of the rows. Waits for the device.

    Raises:
        ValueError: if the loss of several classes is neither the mean nor the sum of the losses of each.
    """
    found = _classes(rows)
    per_row = sum(tensor.numel() for tensor in tensors_of((rows.outputs, rows.batch))) // rows.size
    if found is None or 2 * per_row > FEW:
        return
    targets, classes = found
    labels = torch.linspace(0, classes - 1, min(classes, _MOST_CLASSES), device=targets.device).long()
    # Every part holds the first class, so that no two parts are even in themselves alone.
    for part in labels[1:].split(max(1, FEW // max(1, per_row) - 1)):
        some = torch.cat([labels[:1], part])
        index = torch.arange(len(some), device=some.device) % rows.size
        several = _relabelled(rows.take(index), some.view(-1, *[1] * (targets.ndim - 1)))
        try:
            value, losses = several.together(function), several.cross_entropies()
            if losses is None or not any(_are_close(value, fits) for fits in several.mean_and_total(losses)):
                losses = several.alone(function)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the loss takes no such targets, for a reason of its own
            return
        mean, total = several.mean_and_total(losses)
        if math.isfinite(float(mean)) and not _are_close(value, mean) and not _are_close(value, total):
            raise ValueError(
                f"With a sample of each of the classes {int(some[0])} to {int(some[-1])}, the loss is "
                f"{float(value):.6g}; the mean of their own losses is {float(mean):.6g} and the sum "
                f"{float(total):.6g}. A loss that is neither weighs classes, which scores would mirror. Let the loss "
                "be a plain mean over samples, or choose a measure that does not need it, such as ErrorNorm."
            )


def refuse_other_predictions(measure: Measure, function: LossFunction, rows: Rows) -> None:
    """Refuse outputs that are no logits, and targets that the loss knows nothing of; waits for the device.

    Raises:
        ValueError: if the loss is not the cross-entropy of the outputs and the targets, and hangs on more than their
            softmax, or not on these targets.
    """
    logits, found = logits_of(rows.outputs), _classes(rows)
    assert logits is not None, "the measure has seen them"
    try:
        if bool(are_cross_entropies(rows, rows.alone(function))):
            return
        value = rows.together(function)
        moved = Rows(with_logits(rows.outputs, logits + 1), rows.batch, rows.size, rows.shifted).together(function)
        is_blind = False
        if found is not None and measure.needs_targets:
            targets, classes = found
            others = (targets + 1) % classes
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
