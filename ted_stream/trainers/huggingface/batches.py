"""The batches of the Trainer's loop: read several at a time, trained on one by one."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import Trainer

from ted_stream.engine.step import StepRecorder
from ted_stream.pruning.loss_kinds import Counted
from ted_stream.pruning.segments import Segments
from ted_stream.trainers.huggingface.plain_head import PlainHead
from ted_stream.trainers.reading import EpochReader
from ted_stream.trainers.steps import LoopSteps

__all__ = ["TrainedBatches"]


class TrainedBatches:
    """Sees every batch, its loss and its backward pass, between its reading and the update of the weights.

    Args:
        trainer: that trains on them.
        recorder: of the run.
        reader: of the epochs.
        needs_logits: whether samples are measured or weighed.
    """

    def __init__(self, trainer: Trainer, recorder: StepRecorder, reader: EpochReader, *, needs_logits: bool) -> None:
        self._trainer, self._recorder, self._reader = trainer, recorder, reader
        self._read: deque[tuple[Tensor, Segments | None]] = deque()  # of batches that were read and not yet trained on
        self._steps: LoopSteps | None = None
        self._head = PlainHead() if needs_logits else None
        # A loss of one's own often takes no notice of the count, and smoothed labels never do.
        owner = next(cls for cls in type(trainer).__mro__ if "compute_loss" in vars(cls))
        is_theirs = owner.__module__.startswith(("transformers.", "trl.")) and "compute_loss" not in vars(trainer)
        self._goes_by_count = trainer.compute_loss_func is not None or (is_theirs and trainer.label_smoother is None)

    def attach(self, model: nn.Module) -> None:
        """Hook the model."""
        self._steps = LoopSteps(self._recorder, model, moves_batches=False)
        self._steps.attach()
        if self._head is not None:
            self._head.attach(model)

    def detach(self) -> None:
        """Leave the model as it was; again without effect."""
        if self._steps is not None:
            self._steps.detach()
            self._steps = None
        if self._head is not None:
            self._head.detach()

    def read(self) -> Iterator[Any]:
        """What is left of the epoch, on the device and without ids."""
        self._read.clear()
        args: Any = self._trainer.args
        for batch, ids, segments in self._reader.read():
            self._read.append((ids, segments))
            yield send_to_device(batch, args.device, non_blocking=args.accelerator_config.non_blocking)

    def begin(self, batch: Any) -> None:
        """The next of the batches that were read is about to be trained on.

        Raises:
            RuntimeError: if none was read.
            ValueError: if it has other rows than were read.
        """
        if self._steps is None or not self._read:
            raise RuntimeError("training_step() was given a batch that does not come from the training dataloader.")
        self._steps.begin(batch, *self._read.popleft())

    def seen(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        """The Trainer's computation of the loss, seen where it is that of a training batch."""

        def compute_and_see(
            model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **others: Any
        ) -> Any:
            if return_outputs:
                others["return_outputs"] = True
            if num_items_in_batch is not None:
                others["num_items_in_batch"] = num_items_in_batch
            result = compute_loss(model, inputs, **others)
            steps = self._steps
            if steps is None or not steps.has_batch or not torch.is_grad_enabled():
                return result
            loss, *outputs = result if isinstance(result, tuple) else (result,)
            if not steps.awaits_loss:
                raise ValueError(
                    "The loss of a training batch came without a forward pass of all its rows through the model, in "
                    "their order. A Trainer whose loss takes pairs of rows, or parts of the batch, cannot be pruned."
                )
            loss = steps.loss(loss, self._counted(num_items_in_batch))
            return (loss, *outputs) if isinstance(result, tuple) else loss

        return compute_and_see

    def _counted(self, num_items: Tensor | int | None) -> Counted | None:
        """What the Trainer would have the loss be: it counts the targets of a whole step."""
        if num_items is None:
            return None
        trainer, divisor = self._trainer, torch.as_tensor(num_items, dtype=torch.float32)
        ranks = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
        return Counted(divisor / ranks, multiplier=ranks, is_likely=self._goes_by_count)  # of all ranks' targets

    def end(self) -> None:
        """The batch has been trained on.

        Raises:
            RuntimeError: if its loss or its backward pass did not come.
        """
        assert self._steps is not None, "begin() comes before"
        if not self._steps.is_measured:
            raise RuntimeError(
                f"Batch {self._reader.done} of epoch {self._reader.epoch} is over, but its loss did not come from "
                "compute_loss(), or had no backward pass, so its samples would go unmeasured. Let training_step() call "
                "compute_loss() and the backward pass once for every batch."
            )
        self._recorder.commit(self._reader.done)
        self._steps.drop()
        self._reader.done += 1

    def refuse_unseen(self) -> None:
        """Refuse an update of the weights by batches that were not measured.

        Raises:
            RuntimeError: if there are any.
        """
        if self._read:
            raise RuntimeError(
                f"{len(self._read)} batches were read for this step and not measured. A training_step() of your own "
                "must call that of PruningMixin: super().training_step(…)."
            )
