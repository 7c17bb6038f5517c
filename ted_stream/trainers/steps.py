"""What a loop does with a batch: its forward pass, its loss and its backward pass, as hooks see them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.variable import Variable
from torch.utils.hooks import RemovableHandle

from ted_stream.engine.step import StepRecorder
from ted_stream.pruning.batches import batch_size, map_tensors, split_rows, targets_of, tensors_of, with_targets
from ted_stream.pruning.loss_kinds import Counted
from ted_stream.pruning.segments import Segments

__all__ = ["LoopSteps"]


class LoopSteps:
    """Sees the passes of one batch after the other.

    A forward pass with gradients opens the step, the backward pass of its loss closes it: what the model does before
    and after, or without gradients, is left alone. Another forward pass after that begins the batch again, as closures
    and SAM do; the last counts. A batch that goes through in parts is one step per part.

    Args:
        recorder: of the run.
        model: what the loop calls.
        moves_batches: whether all of a batch must be where the outputs are, beside its targets.
    """

    def __init__(self, recorder: StepRecorder, model: nn.Module, *, moves_batches: bool) -> None:
        self._recorder = recorder
        self._model = model
        self._moves_batches = moves_batches
        self._handles: list[RemovableHandle] = []
        self.drop()

    def attach(self) -> None:
        """Hook the model."""
        # Not within the code that Module.compile() makes of the model and its hooks.
        before, after = torch.compiler.disable(self._before_forward), torch.compiler.disable(self._after_forward)
        self._handles = [
            self._model.register_forward_pre_hook(before, with_kwargs=True, prepend=True),  # it may be the layer
            self._model.register_forward_hook(after, with_kwargs=True),
        ]

    def detach(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.drop()

    def begin(self, batch: Any, ids: Tensor, segments: Segments | None) -> None:
        """A batch is handed to the loop.

        Raises:
            ValueError: if it has other rows than were read.
        """
        self._recorder.begin(ids, segments)
        self._await(batch, slice(0, self._recorder.rows))
        self._recorder.check_rows(batch_size(batch))

    def drop(self) -> None:
        """No batch is being trained on."""
        self._await(None, slice(0, 0))

    def _await(self, batch: Any, rows: slice) -> None:
        """These rows of the batch come next."""
        self._batch, self._rows = batch, rows
        self._outputs: Any = None
        self._is_open = self._is_forwarding = False
        self.has_loss = self.is_measured = False
        self._passes = 0

    def microbatches(self, batch: Any, size: int) -> Iterator[Any]:
        """The batch in parts, each of which is forwarded and differentiated before the next is taken.

        Args:
            batch: that was handed to the loop, moved or changed since, with its rows in order.
            size: rows of a part.

        Raises:
            RuntimeError: if there is no batch, or a part's backward pass did not come.
            ValueError: if the batch has other rows than were read.
        """
        if self._batch is None:
            raise RuntimeError("pruner.microbatches() belongs into the loop over batches(), with a batch of it.")
        self._recorder.check_rows(batch_size(batch))
        for rows, part in split_rows(batch, size):
            self._await(part, rows)
            yield part
            if not self.is_measured:
                raise RuntimeError(
                    f"Rows {rows.start} to {rows.stop - 1} of a batch are left, but {self._what_is_missing}, so their "
                    "samples would go unmeasured. Give every part's loss to pruner.loss(), and call backward() on what "
                    "that returns."
                )

    @property
    def has_batch(self) -> bool:
        """Whether a batch was handed to the loop, and has not been dropped."""
        return self._batch is not None

    def refuse_unfinished(self, epoch: int, batch: int) -> None:
        """Refuse to leave a batch whose samples would go unmeasured.

        Raises:
            RuntimeError: saying what did not come.
        """
        if not self.is_measured:
            raise RuntimeError(
                f"Batch {batch} of epoch {epoch} is left, but {self._what_is_missing}, so its samples would go "
                "unmeasured. Give every batch's loss to pruner.loss(), and call backward() on what that returns."
            )
        if self._rows.stop < self._recorder.rows:
            raise RuntimeError(
                f"Batch {batch} of epoch {epoch} is left after {self._rows.stop} of its {self._recorder.rows} rows, so "
                "the others would go unmeasured. Take all of microbatches()."
            )

    @property
    def _what_is_missing(self) -> str:
        return "its backward pass has not ended" if self.has_loss else "its last forward pass has no loss"

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del model
        if self._batch is None or not torch.is_grad_enabled():
            return None
        given = [args, kwargs]
        has_rows = any(tensor.ndim for tensor in tensors_of(given))
        if has_rows and batch_size(given) != self._rows.stop - self._rows.start:
            return None  # something else than the batch
        if self._is_open and not self._is_forwarding:
            self._passes += 1  # of whose rows nothing is known
            return None
        # Also where a forward pass has failed, for want of memory say, and is tried again.
        self.has_loss = self.is_measured = False
        self._is_open, self._is_forwarding, self._passes = True, True, 1
        self._recorder.rewind(self._rows.start)
        masked = self._recorder.before_forward(given if has_rows else self._batch)
        return tuple(masked) if has_rows else None

    def _after_forward(self, model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        del model, args, kwargs
        if self._is_forwarding:
            self._is_forwarding, self._outputs = False, outputs

    @property
    def awaits_loss(self) -> bool:
        """Whether the batch went through the model, with gradients, and its loss has not been seen."""
        return self._is_open and not self._is_forwarding and not self.has_loss

    def loss(self, loss: Tensor, counted: Counted | None = None) -> Tensor:
        """See the loss, and give the one to differentiate: of the same value, but its gradient times the factor.

        Args:
            loss: () or (B,).
            counted: what the host would have the loss be, where it counts targets over more than the batch.

        Raises:
            TypeError: if it is no tensor.
            RuntimeError: if there is no batch, or no forward pass of it, that it could be the loss of.
            ValueError: if there are several, or what is seen cannot be measured right.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(f"The loss is a {type(loss).__name__}, but must be a tensor: () or one number per sample.")
        if self._batch is None:
            raise RuntimeError("pruner.loss() was called outside of a batch; call it in the loop over batches().")
        if not self.awaits_loss:
            raise RuntimeError(
                "pruner.loss() came without a forward pass of the whole batch, with gradients, through the model that "
                "Pruner was given, or for the second time after one. Give Pruner the model as the loop calls it, and "
                "each forward pass one loss. Batches that go through the model in parts come from microbatches()."
            )
        if self._passes > 1:
            raise ValueError(
                f"{self._passes} forward passes of as many rows as the batch, with gradients, came before its loss, "
                "and which rows are the samples' is not known: those of another batch (replay, unlabelled data) would "
                "be taken for them. Let the others go through the model under torch.no_grad(), or together with the "
                "batch through a model that splits them."
            )
        self._recorder.before_backward(self._where_outputs_are(), self._outputs, loss, counted)
        self.has_loss = True
        if loss.ndim:
            loss = loss.mean()
        # By samples, so that those that share rows weigh what they would in a row each.
        samples = self._recorder.samples_of(self._rows)
        if (share := (samples.stop - samples.start) / len(self._recorder.ids)) < 1:
            loss = loss * share
        loss.register_hook(self._backward_begins)
        return loss

    def _where_outputs_are(self) -> Any:
        devices = [tensor.device for tensor in tensors_of(self._outputs)]
        device = devices[0] if devices else self._recorder.ids.device
        if self._moves_batches:
            return map_tensors(self._batch, lambda tensor: tensor.to(device, non_blocking=True))
        try:
            targets = targets_of(self._batch)
        except ValueError:  # a model that brings its own
            return self._batch
        return with_targets(self._batch, targets.to(device, non_blocking=True))

    def _backward_begins(self, gradient: Tensor) -> None:
        del gradient
        Variable._execution_engine.queue_callback(self._backward_ended)

    def _backward_ended(self) -> None:
        if not self.is_measured:  # a graph that is retained can be gone through again
            self._recorder.after_backward()
            self._is_open, self.is_measured = False, True
