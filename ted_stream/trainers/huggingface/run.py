"""A pruned run within the loop of Hugging Face's Trainer."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from ted_stream.engine import Progress, PruningEngine, Ranks, RunFolder, filled_in
from ted_stream.engine.metrics import boundary_metrics, epoch_metrics
from ted_stream.files import write_bytes
from ted_stream.methods import Method
from ted_stream.trainers import requirements
from ted_stream.trainers.huggingface.batches import TrainedBatches
from ted_stream.trainers.huggingface.checkpoints import has_checkpoints, read_state, state_path
from ted_stream.trainers.huggingface.lengths import Lengths
from ted_stream.trainers.huggingface.requirements import refuse_pruned
from ted_stream.trainers.reading import EpochReader, checked_data

__all__ = ["EpochsLoader", "HuggingFaceRun", "Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the mixin was given."""

    method: Method
    folder: str | None
    seed: int
    progress: Progress
    output_layer: str | None
    allow_other_settings: bool
    overwrite: bool
    # Run folders that the Trainer has had: out of memory, it begins again by itself, with smaller batches.
    claimed: dict[str, RunFolder] = field(default_factory=dict)


class EpochsLoader:
    """What the Trainer takes for its training dataloader: one epoch after the other, or what is left of one.

    Args:
        run: tells them.
    """

    def __init__(self, run: HuggingFaceRun) -> None:
        self._run, self._is_taken = run, True

    def __getattr__(self, name: str) -> Any:
        if name == "_run":  # while it is copied
            raise AttributeError(name)
        return getattr(self._run.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """The Trainer is about to ask for this epoch's length, and then for its batches."""
        self._run.begin_epoch(epoch)
        self._is_taken = False

    def __len__(self) -> int:
        return self._run.lengths.batches_left

    def __iter__(self) -> Iterator[Any]:
        if self._is_taken:
            raise RuntimeError(
                "The training dataloader was iterated outside of an epoch, or twice in one, perhaps by a callback that "
                "looks at a batch: the Trainer would miss what that has taken. Look at samples of the dataset instead."
            )
        self._is_taken = True
        return self._run.batches.read()


class HuggingFaceRun:
    """From the making of the dataloader to the end of training.

    Args:
        trainer: of Hugging Face, that trains.
        settings: of the mixin.
        loader: over a Prunable dataset, or with a PrunedSampler; as it was made, not prepared.
        folder: of the Trainer's own files.
        checkpoint: the folder of the one that the run goes on from, if there is one.

    Attributes:
        engine: the run of the method.
        lengths: of the run.
        batches: that are trained on.

    Raises:
        ValueError: if the loader cannot be served, the run cannot go on from the checkpoint, or its name leads out of
            the folder.
    """

    def __init__(
        self, trainer: Any, settings: Settings, loader: DataLoader, folder: str, checkpoint: str | None
    ) -> None:
        self._trainer, self._settings, self.loader = trainer, settings, loader
        self._name = trainer.args.run_name or os.path.basename(os.path.abspath(trainer.args.output_dir))
        ranks = Ranks()
        data = checked_data(loader, ranks)
        ranks.on_every_rank(lambda: refuse_pruned(trainer.eval_dataset, data))
        self._reader = EpochReader(loader, data, ranks)
        ranks.on_every_rank(lambda: data.activate(None, sample_ids=False))
        self.engine = PruningEngine(
            settings.method,
            data,
            folder=filled_in(settings.folder, self._name) if settings.folder else os.path.join(folder, "pruning"),
            seed=settings.seed,
            ranks=ranks,
            progress=settings.progress,
            output_layer=settings.output_layer,
            allow_other_settings=settings.allow_other_settings,
            overwrite=settings.overwrite,
        )
        self.engine.folder = settings.claimed.setdefault(self.engine.folder.location, self.engine.folder)
        self.engine.folder.has_checkpoints = has_checkpoints(folder)
        needs_logits = settings.method.weighs_samples or settings.method.measure() is not None
        self.batches = TrainedBatches(trainer, self.engine.step, self._reader, needs_logits=needs_logits)
        self.lengths = Lengths(
            self.engine,
            self._reader,
            loader,
            epochs=int(trainer.args.num_train_epochs),
            accumulation=trainer.args.gradient_accumulation_steps,
        )
        if checkpoint is not None:
            state = ranks.on_every_rank(lambda: read_state(checkpoint))
            self._reader.load_state_dict(state)
            self.engine.load_state_dict(state["engine"])
            self.lengths.steps_before = state["global_step"]

    def begin(self) -> None:
        """The Trainer has made everything, and is about to train."""
        trainer, engine, reader = self._trainer, self.engine, self._reader
        model = trainer.model_wrapped
        reader.begin()
        engine.start(model, self.loader, epochs=self.lengths.epochs, run=self._name, at=(reader.epoch, reader.done))
        self.batches.attach(model)
        requirements.warn_of_single_rows(model, engine, self.loader, reader.epoch)
        if reader.is_over:  # saved after an epoch's last step, before its end
            engine.end_epoch()
            reader.end_epoch()

    def begin_epoch(self, epoch: int) -> None:
        """Choose what an epoch keeps, unless the run goes on in its middle.

        Raises:
            RuntimeError: if it is another epoch than the one to come.
        """
        if epoch != self._reader.epoch:
            raise RuntimeError(
                f"The Trainer begins epoch {epoch}, but epoch {self._reader.epoch} is to come: this version of "
                "transformers may count them otherwise than those that this adapter knows."
            )
        if not self._reader.done:
            self._log(boundary_metrics(self.engine, self.engine.begin_epoch(epoch)))
        self.lengths.in_epoch = True
        self._trainer.state.max_steps = self.lengths.planned_steps

    def end_batch(self) -> None:
        """A batch has been trained on.

        Raises:
            ValueError: if what was seen in an epoch's first cannot be measured right.
        """
        self.batches.end()
        if not self.engine.is_checked:  # before the first update
            self.engine.check()

    def end_step(self) -> None:
        """Tell the Trainer how far the epoch is, of which it may have seen the end alone."""
        state = self._trainer.state
        self.lengths.steps_before = state.global_step
        state.epoch = self._reader.epoch + self._reader.done / len(self.loader)

    def end_epoch(self, *, is_last: bool) -> None:
        """Fold the epoch's measurements.

        Args:
            is_last: whether training stops here, so that the epoch may be unfinished.

        Raises:
            RuntimeError: if batches are left, and training goes on.
        """
        if not (left := self.lengths.batches_left):
            self._fold()
            self._reader.end_epoch()
        elif not is_last:
            raise RuntimeError(
                f"Epoch {self._reader.epoch} was stopped with {left} batches left (control.should_epoch_stop), so "
                "the rest of its samples would go unseen. Let epochs end, or stop the training."
            )

    def _fold(self) -> None:
        self._log(epoch_metrics(self.engine, self.engine.end_epoch()))
        self.lengths.in_epoch = False

    def finish(self) -> None:
        """Training has ended: write the manifest, and let go of the data."""
        if self.lengths.in_epoch:  # it was stopped
            self._fold()
        self.batches.detach()
        self.engine.finish()

    def release(self) -> None:
        """However it ended: leave the model and the data as they were; again without effect."""
        self.batches.detach()
        self.engine.release()

    def _log(self, metrics: dict[str, float]) -> None:
        Trainer.log(self._trainer, metrics)  # subclasses add to what they log, and forget it

    def save(self, folder: str) -> None:
        """Write all that the run must know to go on into a checkpoint's folder; every rank must call it."""
        args = self._trainer.args
        state = {
            **self._reader.state_dict(),
            "engine": self.engine.state_dict(everywhere=args.save_on_each_node),
            "global_step": self._trainer.state.global_step,
        }
        if args.should_save:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_bytes(state_path(folder), buffer.getvalue())
