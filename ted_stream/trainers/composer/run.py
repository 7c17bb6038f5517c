"""A pruned run within Composer's training loop: which event does what. Methods are named by their event."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from composer.core import State, Time, TimeUnit
from composer.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from ted_stream.engine import BatchIds, PrunableData, PruningEngine, Ranks, filled_in, read_ids
from ted_stream.engine.data import start_streaming_at
from ted_stream.engine.generators import get_generators, set_generators
from ted_stream.engine.metrics import boundary_metrics, epoch_metrics
from ted_stream.pruning.batches import batch_size, tensors_of, total_loss
from ted_stream.trainers import requirements
from ted_stream.trainers.composer.durations import Plan, plan_epochs
from ted_stream.trainers.composer.losses import loss_of, with_total
from ted_stream.trainers.composer.microbatches import check_microbatch
from ted_stream.trainers.composer.reporting import hyperparameters, show_progress
from ted_stream.trainers.composer.requirements import refuse_shared_evaluation
from ted_stream.trainers.composer.stretching import ScheduleStretcher
from ted_stream.trainers.reading import checked_data

if TYPE_CHECKING:
    from ted_stream.trainers.composer.data_pruning import DataPruning

__all__ = ["ComposerRun"]

log = logging.getLogger(__name__)


class ComposerRun:
    """From FIT_START on, over several fits if the trainer goes on.

    Args:
        settings: of the algorithm.
        state: of the trainer.
        loaded: the algorithm's state in the checkpoint that the run goes on from, if there is one.

    Attributes:
        engine: the run of the method.
    """

    def __init__(self, settings: DataPruning, state: State, loaded: dict[str, Any] | None) -> None:
        self.settings = settings
        self._loaded = loaded if loaded and "engine" in loaded else None
        folder = filled_in(settings.folder, state.run_name)
        if self._loaded and "{run_name}" in settings.folder:
            folder = self._loaded["engine"]["folder"]  # Composer gives the resumed run a new name, unless told one
        self._ranks = Ranks()
        self.engine = PruningEngine(
            settings.method,
            self._data(state),
            folder=folder,
            seed=settings.seed,
            ranks=self._ranks,
            progress=settings.progress,
            output_layer=settings.output_layer,
            loss=loss_of(state),
            allow_other_settings=settings.allow_other_settings,
            overwrite=settings.overwrite,
        )
        self.engine.folder = settings.claimed.setdefault(folder, self.engine.folder)
        self._plan: Plan | None = None
        self._subset_length: int | None = None
        self._generators: list[dict[str, Any]] | None = None  # to go on with, where Composer does not see to it
        self._iterator_is_late = False
        self._given: list[Tensor] | None = None  # an epoch's first batch, until its microbatches have been looked at
        self._trained_on: DataLoader | None = None
        self._ids: BatchIds
        self._stretcher: ScheduleStretcher

    # Before training -------------------------------------------------------------------------------------------

    def fit_start(self, state: State, logger: Logger) -> None:
        """Plan the run, and begin or go on."""
        engine, loader, loaded = self.engine, _loader(state), self._loaded
        engine.use(self._data(state))
        self._trained_on = loader
        epoch, batches_done = state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value
        dataset: Any = engine.data
        if hasattr(dataset, "next_epoch") and not batches_done:
            start_streaming_at(dataset, epoch, self._ranks)
        # Rank 0's is saved, of a sharded checkpoint too, unless somebody's own planner chooses another.
        own_planner = getattr(state.fsdp_config, "save_planner", None)
        self._any_rank_saves = state.fsdp_sharded_state_dict_enabled and own_planner is not None
        self._ids = read_ids(loader, self._ranks, self.settings.batch_transform)
        self._ranks.on_every_rank(lambda: engine.data.activate(None, sample_ids=True))
        full_length = self._full_length(state)
        full_samples = round(engine.data.full_epoch_size * full_length / len(loader))
        before, again = Plan(**loaded["plan"]) if loaded else self._plan, self._plan is not None
        plan = self._plan = plan_epochs(
            state, full_length=full_length, full_samples=full_samples, before=before, again=again
        )
        state.max_duration = Time(plan.epochs, TimeUnit.EPOCH)
        if loaded:
            self._restore(state, loaded)
        length: dict[str, Any] = {"epochs": plan.epochs, "last_share": plan.last_share}
        engine.start(state.model, loader, **length, run=state.run_name, at=(epoch, batches_done))
        rows, bound = state.device_train_microbatch_size, self._subset_length
        requirements.warn_of_single_rows(state.model, engine, loader, epoch, rows, bound)
        position = engine.progress.positions(engine.plan, engine.records, full_length)
        shown = plan.shown(full_length, full_samples)
        self._stretcher = ScheduleStretcher(full_length, position, shown, full_samples / full_length)
        if batches_done:  # no EPOCH_START comes before the rest of this epoch
            plan.refuse_to_end_before(batches_done, self._set_length(state))
        self._stretcher.wrap(state)
        engine.step.suspects = [type(other).__name__ for other in state.algorithms if other is not self.settings]
        logger.log_hyperparameters(hyperparameters(self.settings, engine))

    def _data(self, state: State) -> PrunableData:
        data = checked_data(_loader(state), self._ranks)
        refuse_shared_evaluation(state, data)
        return data

    def _full_length(self, state: State) -> int:
        """The batches of a full epoch, within the trainer's own bound on them (train_subset_num_batches)."""
        full_length, current = len(_loader(state)), state.dataloader_len
        self._subset_length = None if current is None or current.value >= full_length else current.value
        return self._subset_length or full_length

    # The epoch boundary ----------------------------------------------------------------------------------------

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Choose what the epoch keeps."""
        engine, stretcher = self.engine, self._stretcher
        record = engine.begin_epoch(state.timestamp.epoch.value)
        stretcher.position = engine.progress.positions(engine.plan, engine.records, stretcher.full_length)
        self._set_length(state)
        if self._iterator_is_late:
            # Workers that live on draw their seed once, in the run that was cut off; those of this run draw it next.
            self._generators, self._iterator_is_late = get_generators(self._ranks), False
        logger.log_metrics(boundary_metrics(self.engine, record))

    def _set_length(self, state: State) -> int:
        assert self._plan is not None
        full = min(len(_loader(state)), self._subset_length or len(_loader(state)))
        state.dataloader_len = length = max(1, round(full * self._plan.share(state.timestamp.epoch.value)))
        self._ids.start_epoch()
        return length

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Fold the epoch's measurements."""
        logger.log_metrics(epoch_metrics(self.engine, self.engine.end_epoch()))

    def eval_end(self, state: State, logger: Logger) -> None:
        """Evaluation within an epoch is not training."""
        self.engine.pace.leave_out(state.eval_timestamp.total_wct.total_seconds())

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the manifest, and let go of the dataset."""
        self.engine.finish()

    def release(self, state: State) -> None:
        """Make the dataset whole again, let go of the model, and give the trainer its own bound on an epoch back."""
        self.engine.release()
        if state.dataloader is self._trained_on:  # and no evaluation failed
            state.dataloader_len = -1 if self._subset_length is None else self._subset_length

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """A batch is about to be read."""
        self._ids.before_batch()
        if self._generators is not None:
            set_generators(self._generators, self._ranks)
            self._generators = None

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Take the ids off the batch, and copy what an epoch's first holds, which others may change in place."""
        state.batch, ids, segments = self._ids.take(state.batch)
        self.engine.step.begin(ids, segments)
        self._given = None if self.engine.is_checked else [tensor.clone() for tensor in tensors_of(state.batch)]

    def batch_start(self, state: State, logger: Logger) -> None:
        """See the whole batch, and what is stepped for it."""
        self.engine.step.check_rows(batch_size(state.batch))
        self._stretcher.before_batch(state)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Begin the batch, or begin it again: after running out of memory, or for a second closure evaluation."""
        self.engine.step.rewind(0)

    def before_forward(self, state: State, logger: Logger) -> None:
        """Open the microbatch."""
        step = self.engine.step
        if self._given is not None:
            check_microbatch(self._given, step.rows_done, state.batch, step.suspects)
        state.batch = step.before_forward(state.batch)

    def before_backward(self, state: State, logger: Logger) -> None:
        """See the loss."""
        step = self.engine.step
        state.loss = with_total(state.loss)
        step.before_backward(state.batch, state.outputs, total_loss(state.loss))

    def after_backward(self, state: State, logger: Logger) -> None:
        """Read the measurements."""
        self.engine.step.after_backward()
        # Before the first update of the weights; but no rank may wait for one that has run out of memory.
        if not self.engine.is_checked and not state.auto_microbatching:
            self._check(logger)

    def _check(self, logger: Logger) -> None:
        known = self.engine.output_layer
        self.engine.check()
        if (layer := self.engine.output_layer) != known:
            level = logging.DEBUG if self._ranks.rank else logging.INFO
            log.log(level, "Pruning measures at the output layer %r.", layer)
            logger.log_hyperparameters({"pruning/output_layer": str(layer)})

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count the batch."""
        if not self.engine.is_checked:
            self._check(logger)
        self.engine.step.commit(state.timestamp.batch_in_epoch.value - 1)
        self._stretcher.after_batch(state)
        if state.timestamp.batch_in_epoch == 1:  # the epoch's bar exists by now
            show_progress(self.engine, logger)

    def state_dict(self) -> dict[str, Any]:
        """All that a run must know to go on; every rank must call it."""
        if self._plan is None:
            return {}
        return {
            "engine": self.engine.state_dict(everywhere=self._any_rank_saves),
            "plan": asdict(self._plan),
            "order": self._ids.order,
            "generators": get_generators(self._ranks),
        }

    def _restore(self, state: State, loaded: dict[str, Any]) -> None:
        self._loaded = None
        self.engine.load_state_dict(loaded["engine"])
        in_epoch = state.timestamp.batch_in_epoch > 0
        if in_epoch:
            requirements.refuse_other_order(loaded, self._ids.order, state.timestamp.epoch.value)
        if in_epoch and "train" in state.dataset_resumption:
            # Where a dataset resumes by itself, Composer restores random generators at the start of an epoch alone.
            self._generators = loaded["generators"]
        self._iterator_is_late = not in_epoch and _loader(state).persistent_workers


def _loader(state: State) -> DataLoader:
    return cast("DataLoader", state.dataloader)
