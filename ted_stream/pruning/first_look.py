"""What the first microbatch shows about whether a measure means what it says."""

import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ted_stream.pruning.batches import IGNORE_INDEX, class_targets, logits_of, targets_of, within_classes
from ted_stream.pruning.loss_kinds import (
    Counted,
    LossReading,
    Rows,
    are_no_probabilities,
    holds_loss,
    read_rows,
    read_value,
)
from ted_stream.pruning.loss_trials import is_uneven, refuse_other_predictions
from ted_stream.pruning.measures import Measure, Microbatch

__all__ = ["FirstLook"]


class FirstLook:
    """Takes a few rows and numbers of the first microbatch, and looks at their values later, in :meth:`check`.

    Args:
        measure: what is measured.
        microbatch: the first; its loss function is not tried where samples share rows.
        counted: what the trainer would have the loss be, where it counts targets itself.

    Attributes:
        reading: how the loss is made of the samples', where that matters.
        layer: () whether the output layer is as the measure takes it.
        batch: the microbatch, with targets that are within the range of the logits' classes.
    """

    def __init__(self, measure: Measure, microbatch: Microbatch, counted: Counted | None = None) -> None:
        outputs, batch, loss = microbatch.outputs, microbatch.batch, microbatch.loss
        size, shifted, function = microbatch.size, microbatch.shifted, microbatch.loss_function
        segments, logits = microbatch.segments, logits_of(microbatch.outputs)
        if holds_loss(outputs) or (logits is not None and len(logits) != size):
            function = None  # it hands out what is there, or cannot be tried on rows
        self._measure = measure
        self._function = function
        self._is_vector = loss.shape == (size,)  # a loss per sample
        takes_cross_entropies = function is None and measure.needs_loss and measure.site is None and not self._is_vector
        self._takes_classes = measure.needs_classes or takes_cross_entropies
        self.batch = batch
        self.layer: Tensor | bool = True
        self._targets = _targets(batch) if self._takes_classes else None
        self._classes: int | None = None
        if self._takes_classes and measure.needs_targets:
            with suppress(ValueError):  # which the measure is about to raise
                found = class_targets(outputs, batch)
                self._classes = None if found is None else found[1]
                self.batch = within_classes(outputs, batch)
        self._rows = None if function is None else Rows.of(outputs, batch, size, shifted=shifted)
        self.reading: LossReading | None = None
        if function is None and (self._takes_classes or (measure.needs_loss and not self._is_vector)):
            self.reading = read_value(outputs, batch, loss, shifted=shifted, counted=counted, segments=segments)
        elif function is not None and self._rows is not None and measure.needs_loss and not self._is_vector:
            try:
                self.reading = read_rows(function, self._rows)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                warnings.warn(
                    f"The loss function cannot be tried on single rows of a batch ({error!r}), so the loss is taken "
                    "for one that is known by its value alone.",
                    stacklevel=2,
                )
                self._function = self._rows = None
                self._takes_classes = measure.site is None
                self.reading = read_value(outputs, batch, loss, shifted=shifted, counted=counted)

    def check(self) -> None:
        """Look at the values; waits for the device.

        Raises:
            ValueError: if the measure hangs on a loss that is neither a mean nor a sum over samples, or that weighs
                classes; or if it looks at logits and classes that the loss is not made of, or that are none.
        """
        measure, function, rows = self._measure, self._function, self._rows
        if not bool(self.layer):
            raise ValueError(
                f"The logits are not W f + b of the output layer's weight, bias and input (an adapter, a norm, a scale "
                f"or a cap may be between), which {measure!r} takes the gradient at. Name the layer that makes the "
                "logits with output_layer='…', or choose a measure that asks for no features, such as ErrorNorm."
            )
        if self._targets is not None:
            self._check_targets(self._targets)
        if self.reading is not None and self._takes_classes and measure.needs_targets:
            self.reading.refuse_other_losses()
        if self.reading is not None and measure.needs_loss:
            self.reading.settle()
        if function is not None and rows is not None:
            if measure.needs_loss and not self._is_vector:
                is_other = is_uneven(function, rows)
                if self.reading is not None and is_other:
                    self.reading.is_cross_entropy = False
            if measure.needs_classes:
                refuse_other_predictions(measure, function, rows)
        self._rows = None

    def _check_targets(self, targets: Tensor) -> None:
        if targets.is_floating_point():
            if targets.ndim > 1 and bool(are_no_probabilities(targets)):
                raise ValueError(
                    f"The targets of the first microbatch sum to {targets.sum(-1).tolist()[:4]} over the classes, so "
                    f"they are no class probabilities, which {self._measure!r} needs. Choose the measure MaskGradient, "
                    "or Loss with a loss function."
                )
        elif self._classes is not None:
            lowest, highest = (int(end) for end in targets.where(targets != IGNORE_INDEX, 0).aminmax())
            if lowest < 0 or highest >= self._classes:
                raise ValueError(
                    f"The targets of the first microbatch are from {lowest} to {highest}, but the model tells "
                    f"{self._classes} classes apart, 0 to {self._classes - 1}. Let the batch hold the classes as "
                    f"'labels' or as its second element, and mark with {IGNORE_INDEX} what the loss does not count."
                )


def _targets(batch: Any) -> Tensor | None:
    try:
        return targets_of(batch).detach()
    except ValueError:
        return None
