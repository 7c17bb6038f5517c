"""What a training step records: which samples it was given, what was measured of each, what each weighs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.engine.finite_watch import FiniteWatch
from ted_stream.pruning import Measurements, batch_size
from ted_stream.pruning.batches import class_labels, tensors_of
from ted_stream.pruning.loss_kinds import Counted
from ted_stream.pruning.probe import StepProbe
from ted_stream.pruning.segments import Segments

__all__ = ["StepRecorder"]


class StepRecorder:
    """The measurements of an epoch, one step after the other; nothing in a step waits for the device.

    Per batch: ``begin`` with its ids, again if the batch is tried again; then per microbatch ``before_forward``,
    ``before_backward``, ``after_backward``; and ``commit`` once the batch has ended: only then does it count.

    Args:
        probe: measures and weighs microbatches.
        labelled: note the samples' classes, and refuse targets that are none. Without it they are noted where something
            is measured and the targets are classes.
        when_diverged: called within the step after which it shows that batch upon batch measures nothing finite, with
            the epoch's steps so far and what they measured, (B,) each.

    Attributes:
        loss_factor: what the gradient of every loss is multiplied by, beside the weights of single samples.
        ids: (B,) int64, of the batch that was begun last.
        rows: of that batch: B, or fewer or more where samples share rows.
        rows_done: how many of them were forwarded.
        suspects: what may change the number of a batch's rows, to name in errors.
    """

    def __init__(
        self,
        probe: StepProbe,
        *,
        labelled: bool = False,
        when_diverged: Callable[[Sequence[int], Sequence[Tensor]], None] = lambda steps, values: None,
    ) -> None:
        self._probe = probe
        self._watch, self._when_diverged = FiniteWatch(), when_diverged
        self._labelled = labelled
        self._notes_classes = labelled or probe.measure is not None
        self._weights: Tensor | None = None
        self.loss_factor = 1.0
        self.suspects: list[str] = []
        self.ids = torch.empty(0, dtype=torch.int64)
        self.clear()

    def clear(self, resumed: Measurements | None = None) -> None:
        """Forget the epoch's measurements; begin with those of a part of it that another process trained on."""
        self._ids: list[Tensor] = []
        self._values: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._steps: list[int] = []
        self._resumed = resumed or Measurements()
        self._watch.clear()
        self.begin(self.ids[:0])

    def weigh(self, weights: NDArray[np.float32] | None, loss_factor: float) -> None:
        """Weigh the samples of the coming batches.

        Args:
            weights: (N,) float32 by sample id, kept on every rank where the ids are; ``None``: all alike.
            loss_factor: see the class.
        """
        self._weights = None if weights is None else torch.from_numpy(weights)
        self.loss_factor = loss_factor

    def begin(self, ids: Tensor, segments: Segments | None = None) -> None:
        """A batch is about to be trained on, perhaps once more: what was measured in it so far does not count.

        Args:
            ids: (B,) int64 sample ids, in the order of the batch's rows, on any device.
            segments: where samples share rows, those of the batch; the ids are in their order.
        """
        self.ids, self._segments = ids, segments
        self.rows = len(ids) if segments is None else segments.rows
        self._pending: list[Tensor] = []
        self._pending_labels: list[Tensor] = []
        self.rows_done = 0

    def samples_of(self, rows: slice) -> slice:
        """Which of the batch's samples these rows hold."""
        if self._segments is None:
            return rows
        return slice(self._segments.before[rows.start], self._segments.before[rows.stop])

    def rewind(self, row: int) -> None:
        """The batch is tried again from this row on, a microbatch's first: what was measured of it does not count."""
        samples = self.samples_of(slice(0, row)).stop
        for pending in (self._pending, self._pending_labels):
            while pending and sum(map(len, pending)) > samples:
                pending.pop()
        self.rows_done = row

    def before_forward(self, batch: Any) -> Any:
        """The microbatch to forward.

        Raises:
            ValueError: if the microbatches have more rows than the batch.
        """
        rows = slice(self.rows_done, self.rows_done + batch_size(batch))
        if rows.stop > self.rows:
            self.check_rows(rows.stop)
        self.rows_done = rows.stop
        segments = None if self._segments is None else self._segments.of_rows(rows)
        weights = None
        if self._weights is not None:
            if self._weights.device != self.ids.device:
                self._weights = self._weights.to(self.ids.device)  # once in an epoch
            device = tensors_of(batch)[0].device
            weights = self._weights[self.ids[self.samples_of(rows)]].to(device, non_blocking=True)
        return self._probe.before_forward(batch, weights, segments)

    def before_backward(self, batch: Any, outputs: Any, loss: Tensor, counted: Counted | None = None) -> None:
        """See the microbatch's outputs and its loss, whose value stays that of the samples: its gradient is scaled.

        Args:
            batch: the microbatch.
            outputs: of the model.
            loss: the tensor that holds all of the loss, as the model gave it.
            counted: what the host would have the loss be, where it counts targets over more than the microbatch.

        Raises:
            ValueError: if classes are asked for, and the targets are none.
        """
        if self._notes_classes:
            self._note_classes(batch)
        if loss.requires_grad and (factor := self.loss_factor) != 1:
            loss.register_hook(lambda gradient: gradient * factor)  # before those that are to see it
        self._probe.before_backward(batch, outputs, loss, counted)

    def _note_classes(self, batch: Any) -> None:
        try:
            labels = class_labels(batch)
            if len(labels) != batch_size(batch):
                raise ValueError(
                    f"The batch has {batch_size(batch)} samples and {len(labels)} targets, so the samples' classes are "
                    "not known. Give one whole-numbered target per sample."
                )
        except ValueError:
            if self._labelled:
                raise
            self._notes_classes, self._pending_labels, self._labels = False, [], []
            return
        self._pending_labels.append(labels.clone())  # a view would keep all of its batch

    def after_backward(self) -> None:
        """Read what the backward pass left."""
        values = self._probe.after_backward()
        if values is not None:
            self._pending.append(values)

    def commit(self, step: int) -> None:
        """The batch has ended.

        Args:
            step: its number within the epoch, from 0, the same on every rank.

        Raises:
            ValueError: if its microbatches did not have all of its rows.
        """
        self.check_rows(self.rows_done)
        self._ids.append(self.ids)
        self._steps.append(step)
        if self._pending_labels:
            self._labels.append(torch.cat(self._pending_labels))
        if self._pending:
            self._values.append(torch.cat(self._pending))
            if self._watch.finds_none(self._values):
                self._when_diverged(self._steps, self._values)

    def check_rows(self, rows: int) -> None:
        """Refuse a batch, or what was forwarded of it, of another number of rows than was read.

        Raises:
            ValueError: naming what may have changed it.
        """
        if rows != self.rows:
            read = f"{len(self.ids)} samples" + (f" in {self.rows} rows" if self._segments is not None else "")
            suspects = ", ".join([*self.suspects, "a batch transform", "split_batch"])
            raise ValueError(
                f"{rows} rows of a batch go to the model, but {read} were read for it, so scores "
                f"would go to the wrong samples. One of these changes the number of rows: {suspects}. Remove it, or "
                "let it keep all rows, in order."
            )

    def measurements(self) -> Measurements:
        """This rank's measurements of the epoch so far; the only place that waits for the device."""
        if not self._ids:
            return self._resumed
        sizes = [len(ids) for ids in self._ids]
        ids = torch.cat(self._ids).cpu().numpy()
        values = torch.cat(self._values).cpu().numpy() if self._values else np.zeros(len(ids), np.float32)
        steps = np.repeat(np.array(self._steps, np.int64), sizes)
        labels = torch.cat(self._labels).cpu().numpy() if self._labels else None
        mine = Measurements(ids=ids, importance=values, steps=steps, labels=labels)
        return Measurements.concatenate([self._resumed, mine])
