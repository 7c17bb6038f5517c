"""What no method of Hugging Face's Trainer tells."""

import os
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainerCallback

from ted_stream.trainers.huggingface.checkpoints import state_path
from ted_stream.trainers.huggingface.run import EpochsLoader, HuggingFaceRun
from ted_stream.trainers.schedules import StretchedScheduler

if TYPE_CHECKING:
    from ted_stream.trainers.huggingface.pruning_mixin import PruningMixin

__all__ = ["RunEvents"]


class RunEvents(TrainerCallback):
    """Tells the run of its beginning and end, and of those of epochs and steps.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: "PruningMixin") -> None:
        self._trainer = trainer

    @property
    def _run(self) -> HuggingFaceRun:
        run = self._trainer._pruned_run
        assert run is not None, "on_train_begin comes before"
        return run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All is made, and the first epoch is to come.

        Raises:
            ValueError: if the dataloader or the scheduler is another than the mixin's.
        """
        trainer, run = self._trainer, self._trainer._pruned_run
        if run is None or not isinstance(kwargs.get("train_dataloader"), EpochsLoader):
            raise ValueError(
                "The training dataloader is not that of PruningMixin, so samples would not be pruned, or be shared out "
                "twice. Drop your get_train_dataloader(), or let it return super().get_train_dataloader() as it is, "
                "neither prepared nor wrapped."
            )
        if not isinstance(trainer.lr_scheduler, (StretchedScheduler, ReduceLROnPlateau)):
            raise ValueError(
                "The learning-rate scheduler is not that of PruningMixin, so it would go by the steps of the pruned "
                "run, and end too early or too late. Let your create_scheduler() or create_optimizer_and_scheduler() "
                "call super()'s, or hand the Trainer a scheduler of the full run by optimizers=(…)."
            )
        run.begin()
        trainer.compute_loss = run.batches.seen(trainer.compute_loss)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradients are complete."""
        self._run.batches.refuse_unseen()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have been updated."""
        self._run.end_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch is over."""
        self._run.end_epoch(is_last=control.should_training_stop)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Evaluation within an epoch is not training."""
        if (run := self._trainer._pruned_run) is not None:
            taken = [value for name, value in (metrics or {}).items() if name.endswith("_runtime")]
            run.engine.pace.leave_out(sum(taken))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training is over."""
        self._run.finish()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint has been written.

        Raises:
            RuntimeError: if it is without the state of the pruning.
        """
        if args.save_only_model or not args.should_save:
            return
        trial = getattr(self._trainer, "_trial", None)
        folder = os.path.join(str(self._trainer._get_output_dir(trial)), f"checkpoint-{state.global_step}")
        if os.path.isdir(folder) and not os.path.isfile(state_path(folder)):
            raise RuntimeError(
                f"{folder} was written without the state of the pruning, so the run could not go on from it. A "
                "_save_checkpoint() of your own must call super()._save_checkpoint(…)."
            )
