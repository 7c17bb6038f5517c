"""Data pruning in front of Hugging Face's Trainer: its arguments, and what it does otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import IterableDataset, Sampler
from transformers import Trainer

from ted_stream.engine import EpochRecord, ProgressLike, PruningEngine, checked_folder
from ted_stream.methods import Method
from ted_stream.pruning.settings import check_whole
from ted_stream.sampler import PrunedSampler
from ted_stream.trainers import requirements
from ted_stream.trainers.huggingface.collating import CollateBesideIds
from ted_stream.trainers.huggingface.events import RunEvents
from ted_stream.trainers.huggingface.lengths import StepsPerEpoch
from ted_stream.trainers.huggingface.requirements import refuse_pruned, refuse_wrong_use
from ted_stream.trainers.huggingface.run import EpochsLoader, HuggingFaceRun, Settings
from ted_stream.trainers.schedules import StretchedScheduler

__all__ = ["PruningMixin"]

_Base = Trainer if TYPE_CHECKING else object


class PruningMixin(_Base):
    """Prunes the training set of Hugging Face's Trainer, or of one that is made of it, at every epoch's start.

    ::

        class PrunedTrainer(PruningMixin, Trainer): ...

        PrunedTrainer(model=model, args=args, train_dataset=data, pruning=TED(0.7)).train()

    A map-style dataset is read through a :class:`~ted_stream.PrunedSampler`, seeded by ``args.data_seed`` (or
    ``args.seed``); a :class:`~ted_stream.PrunedStreamingDataset` (or any made :class:`~ted_stream.reading.Prunable`)
    as it is. The state of the pruning is in every ``checkpoint-N``.

    Args:
        *args: of the Trainer.
        pruning: what to measure, keep and weigh.
        pruning_folder: of the run, a path or a URI, with ``{run_name}`` filled in; else ``pruning`` in ``output_dir``.
        pruning_seed: of ties and draws.
        pruning_progress: by what the learning rate comes on in pruned epochs: ``samples`` forwarded, (N,) sizes of
            these by id, such as tokens, or full ``epochs``, where the method's counts are its own.
        pruning_output_layer: dotted name of the layer that makes the logits, where it is not found by what enters the
            loss.
        pruning_allow_other_settings: go on from a checkpoint of another method, of other settings, another seed or
            progress.
        pruning_overwrite: replace an earlier run in the folder, where training does not go on with it.
        **kwargs: of the Trainer.

    Raises:
        TypeError: for an argument of another type, or a class that has the mixin behind the Trainer.
        ValueError: for a value out of range.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(PruningMixin):
            raise TypeError(
                f"{cls.__name__} has PruningMixin behind the Trainer, which would not see it. Put it in front: "
                f"class {cls.__name__}(PruningMixin, Trainer)."
            )
        for behind in order[order.index(PruningMixin) + 1 :]:
            if behind is not Trainer and "_get_train_sampler" in vars(behind):
                raise TypeError(
                    f"{behind.__name__} chooses samples by a _get_train_sampler() of its own, which {cls.__name__} "
                    "would not call: pruning chooses the samples of an epoch. Drop that method."
                )

    def __init__(
        self,
        *args: Any,
        pruning: Method,
        pruning_folder: str | PathLike[str] | None = None,
        pruning_seed: int = 0,
        pruning_progress: ProgressLike | None = None,
        pruning_output_layer: str | None = None,
        pruning_allow_other_settings: bool = False,
        pruning_overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        others = pruning_allow_other_settings, pruning_overwrite
        self._pruning = Settings(
            method=pruning,
            folder=None if pruning_folder is None else checked_folder(pruning_folder),
            seed=check_whole("pruning_seed", pruning_seed, fix="it seeds ties and draws."),
            progress=requirements.check_settings(pruning, pruning_progress, *others),
            output_layer=requirements.checked_output_layer(pruning_output_layer, pruning),
            allow_other_settings=pruning_allow_other_settings,
            overwrite=pruning_overwrite,
        )
        self._pruned_run: HuggingFaceRun | None = None
        self._is_pruning = False
        self._goes_on_from: str | None = None
        super().__init__(*args, **kwargs)
        self.callback_handler.callbacks.insert(0, RunEvents(self))  # before those that look at the epoch

    @property
    def pruning_engine(self) -> PruningEngine:
        """The run: scores, records, output layer; of the last training.

        Raises:
            RuntimeError: before training.
        """
        if self._pruned_run is None:
            raise RuntimeError("Pruning has not started: the engine exists once train() has been called.")
        return self._pruned_run.engine

    @property
    def pruning_records(self) -> list[EpochRecord]:
        """Of the epochs so far."""
        return [] if self._pruned_run is None else self._pruned_run.engine.records

    @property
    def pruning_save_ratio(self) -> float:
        """1 - forwarded / what full data forwards, over the epochs that have ended (TED, eq. 24)."""
        return 0.0 if self._pruned_run is None else self._pruned_run.engine.save_ratio

    # What the Trainer's loop asks for --------------------------------------------------------------------------

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: Any = None,
        trial: Any = None,
        ignore_keys_for_eval: Any = None,
    ) -> Any:
        refuse_wrong_use(self)
        self._goes_on_from, self._pruned_run, self._is_pruning = resume_from_checkpoint, None, True
        own = vars(self).get("compute_loss")
        try:
            return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._is_pruning = False
            vars(self).pop("compute_loss", None)
            if own is not None:
                self.compute_loss = own
            if self._pruned_run is not None:
                self._pruned_run.release()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return PrunedSampler(dataset, num_replicas=self.args.world_size, rank=self.args.process_index, seed=seed)

    def get_train_dataloader(self) -> Any:
        """The training batches, not prepared by accelerate; in training, those of one pruned epoch after the other.

        Raises:
            RuntimeError: if it is called while training.
        """
        if self._pruned_run is not None and self._is_pruning:
            raise RuntimeError(
                "get_train_dataloader() was called while training, perhaps by a callback: another reader of the same "
                "data would disturb the run. Look at samples of the dataset instead."
            )
        with _unprepared(self.accelerator):
            loader: Any = super().get_train_dataloader()
        if isinstance(loader.dataset, IterableDataset):
            loader.collate_fn = CollateBesideIds(loader.collate_fn)
        if not self._is_pruning:
            return loader
        folder = str(self._get_output_dir(getattr(self, "_trial", None)))
        self._pruned_run = HuggingFaceRun(self, self._pruning, loader, folder, self._goes_on_from)
        return EpochsLoader(self._pruned_run)

    def set_initial_training_values(self, args: Any, dataloader: Any, total_train_batch_size: int) -> Any:
        """The length of the run: of steps and samples, what is planned."""
        values = super().set_initial_training_values(args, dataloader, total_train_batch_size)
        run = self._pruned_run
        if run is None or not isinstance(dataloader, EpochsLoader):
            return values  # refused in a moment
        epochs, per_epoch, examples, _, by_epochs, length, _ = values
        per_epoch = StepsPerEpoch(per_epoch).going_on_at(run.lengths.coming_epoch)
        return epochs, per_epoch, examples, run.lengths.planned_samples, by_epochs, length, run.lengths.planned_steps

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Of another dataset than the one that is being pruned."""
        self._refuse_pruned(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Of another dataset than the one that is being pruned."""
        self._refuse_pruned(test_dataset)
        return super().get_test_dataloader(test_dataset)

    def _refuse_pruned(self, dataset: Any) -> None:
        if self._is_pruning and self._pruned_run is not None:
            refuse_pruned(dataset, self._pruned_run.engine.data)

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """An optimizer, and a scheduler of a run without pruning: see :meth:`create_scheduler`."""
        run = self._pruned_run if self._is_pruning else None
        super().create_optimizer_and_scheduler(num_training_steps if run is None else run.lengths.full_steps)
        if run is not None:
            self._stretch(run)

    def _stretch(self, run: HuggingFaceRun) -> None:
        scheduler: Any = self.lr_scheduler
        if not isinstance(scheduler, (StretchedScheduler, ReduceLROnPlateau)):  # the latter counts evaluations
            self.lr_scheduler = StretchedScheduler(scheduler, run.lengths.position)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of a run without pruning, which every epoch takes as far as a full one would."""
        run = self._pruned_run
        if not self._is_pruning or run is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if isinstance(self.lr_scheduler, StretchedScheduler):  # given by the user, in an earlier training
            self.lr_scheduler = self.lr_scheduler.scheduler
        super().create_scheduler(run.lengths.full_steps, optimizer)
        self._stretch(run)
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A batch's passes, in which its samples are measured."""
        run = self._pruned_run
        if not self._is_pruning or run is None:
            return super().training_step(model, inputs, *args, **kwargs)
        run.batches.begin(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        run.end_batch()
        return loss

    def _save_rng_state(self, output_dir: str) -> None:
        # Of what every rank calls, the last before older checkpoints are removed.
        super()._save_rng_state(output_dir)
        if self._pruned_run is not None:
            self._pruned_run.save(output_dir)


@contextmanager
def _unprepared(accelerator: Any) -> Iterator[None]:
    """Let the Trainer make a dataloader, and not have it shard once more what every rank reads its own share of."""
    own = vars(accelerator).get("prepare")
    accelerator.prepare = lambda loader, **options: loader
    try:
        yield
    finally:
        del accelerator.prepare
        if own is not None:
            accelerator.prepare = own
