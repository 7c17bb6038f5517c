"""Dynamic data pruning as a Composer algorithm: measure, score, select, and train the next epoch on what is kept."""

import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from composer.core import Algorithm, Event, State, Time
from composer.loggers import Logger, ProgressBarLogger
from composer.utils import reproducibility
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.algorithms.batch_ids import BatchIds, CarriedIds, order_difference, read_ids
from ted_stream.algorithms.ranks import on_every_rank, on_rank_zero
from ted_stream.algorithms.requirements import (
    prunable_data,
    refuse_shared_evaluation,
    refuse_too_few_samples,
    refuse_wrong_use,
)
from ted_stream.algorithms.run_folder import RunFolder
from ted_stream.algorithms.stretching import ScheduleStretcher
from ted_stream.export import write_manifest
from ted_stream.pruning import (
    Importance,
    KeepRatioSchedule,
    Measurements,
    ScoreStore,
    Selection,
    default_communicator,
    select,
)
from ted_stream.reading import Prunable
from ted_stream.skip_list import SkipList, from_bytes, to_bytes

__all__ = ["DataPruning", "EpochRecord"]

_STATE_VERSION = 1
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(kw_only=True)
class EpochRecord:
    """What one epoch kept and forwarded, over all ranks; a row of ``run.json``.

    Args:
        epoch: 0-based.
        keep_ratio: r_t.
        kept: samples of the dataset that the skip-list keeps.
        returning: kept samples that the epoch before had pruned. Near zero over many epochs, the method is frozen.
        unmeasured: samples without a score when the epoch was selected; they rank first.
        skip_list: file name in the run folder.
        digest: of the skip-list.
        forwarded: samples that were trained on, padding repeats included; ranks that replicate each other count once.
        non_finite: measurements that were dropped because they overflowed.
        boundary_seconds: time to score, select, write and activate, on rank 0.
    """

    epoch: int
    keep_ratio: float
    kept: int
    returning: int
    unmeasured: int
    skip_list: str
    digest: str
    forwarded: int = 0
    non_finite: int = 0
    boundary_seconds: float = 0.0


class DataPruning(Algorithm):
    """Prunes the training set at every epoch boundary: importance × selection × keep ratio × loss correction.

    In every epoch the samples that are trained on are measured within the steps that train on them. At the epoch's
    end the measurements are folded into running scores, and before the next epoch the samples to keep are selected
    from all scores, a skip-list is written, and the training dataset drops the rest before its bytes are read. The
    model, the loss and the learning-rate schedule stay as they are: an epoch of fewer batches counts as one epoch.

    The training dataloader must be a torch DataLoader over a :class:`~ted_stream.PrunedStreamingDataset` (or any
    dataset made :class:`~ted_stream.reading.Prunable`), or over a map-style dataset with a
    :class:`~ted_stream.PrunedSampler`; and ``max_duration`` in epochs.

    The run folder holds ``skip_lists/ep0007.parquet`` for every epoch, ``run.json``, and at the end
    ``manifest.parquet``: the samples that the last pruned epoch kept, with their scores.

    Args:
        importance: what is measured on a batch; ``None`` measures nothing.
        selection: which samples are kept, given their scores.
        schedule: how many are kept in every epoch.
        loss_correction: divide the loss by r_t (TED, eq. 23).
        alpha: weight of the past in the running score (TED, eq. 19).
        relative: divide measurements by the running mean importance, so that epochs can be compared.
        seed: of the hash that breaks ties.
        folder: of the run, a local path or a URI that streaming can up- and download; ``{run_name}`` is filled in.
        method: the method's name, written into skip-lists.
    """

    def __init__(
        self,
        *,
        importance: Importance | None,
        selection: Selection,
        schedule: KeepRatioSchedule,
        loss_correction: bool = True,
        alpha: float = 0.9,
        relative: bool = False,
        seed: int = 0,
        folder: str = "ted_stream_runs/{run_name}",
        method: str = "DataPruning",
    ) -> None:
        ScoreStore(1, alpha=alpha)  # refuses a bad alpha here, where the user wrote it
        self.importance = importance
        self.selection = selection
        self.schedule = schedule
        self.loss_correction = loss_correction
        self.alpha = alpha
        self.relative = relative
        self.seed = seed
        self.folder = folder
        self.method = method
        self.records: list[EpochRecord] = []
        self._store: ScoreStore | None = None
        self._active: SkipList | None = None
        self._stream_keys: list[str] | None = None  # the streams that the scores belong to, in order
        self._own_length: Time[int] | None = None  # the epoch length that we set last, in batches
        self._subset_length: int | None = None
        self._loaded: dict[str, Any] | None = None
        self._ids: BatchIds = CarriedIds()  # until FIT_START knows the dataloader
        self._epoch_ids: list[Tensor] = []
        self._epoch_importance: list[Tensor] = []
        self._epoch_steps: list[int] = []
        self._resumed = Measurements()
        self._generators: Any = None  # the states to go on with, where Composer does not see to it
        self._iterator_is_late = False
        self._fold_seconds = 0.0
        self._handlers: dict[Event, Callable[[State, Logger], None]] = {
            Event.INIT: self._on_init,
            Event.FIT_START: self._on_fit_start,
            Event.EPOCH_START: self._on_epoch_start,
            Event.BEFORE_DATALOADER: self._on_before_dataloader,
            Event.AFTER_DATALOADER: self._on_after_dataloader,
            Event.BATCH_START: self._on_batch_start,
            Event.BEFORE_TRAIN_BATCH: self._on_before_train_batch,
            Event.BEFORE_FORWARD: self._on_before_forward,
            Event.BEFORE_BACKWARD: self._on_before_backward,
            Event.AFTER_BACKWARD: self._on_after_backward,
            Event.BATCH_END: self._on_batch_end,
            Event.EPOCH_END: self._on_epoch_end,
            Event.FIT_END: self._on_fit_end,
        }

    def __repr__(self) -> str:
        names = [
            "importance",
            "selection",
            "schedule",
            "loss_correction",
            "alpha",
            "relative",
            "seed",
            "folder",
            "method",
        ]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def match(self, event: Event, state: State) -> bool:
        """Whether the event is one that pruning acts on."""
        del state
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Act on the event."""
        self._handlers[event](state, logger)

    # Before training -------------------------------------------------------------------------------------------

    def _on_init(self, state: State, logger: Logger) -> None:
        # Last in the list is first at AFTER_* events and last at BEFORE_* events: the ids are gone before another
        # algorithm sees the batch, the mask goes onto what the model is shown, and the loss is final.
        state.algorithms = [other for other in state.algorithms if other is not self] + [self]

    def _on_fit_start(self, state: State, logger: Logger) -> None:
        refuse_wrong_use(state, self, DataPruning)
        dataloader: Any = state.dataloader
        data = self._data = on_every_rank(lambda: prunable_data(dataloader))
        refuse_shared_evaluation(state, data)
        self._ids = read_ids(dataloader)
        if self.importance is not None:
            self.importance.attach(state.model)

        epoch, batches_done = state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value
        if state.timestamp.batch == 0 and self._loaded is None:
            self._reset()  # of an earlier run of this object
        if isinstance(data, Prunable) and epoch and not batches_done:
            # Streaming saves the epoch that ended, and would replay its order after a resume (and lag for ever).
            data.load_state_dict({**data.state_dict(0, True), "epoch": epoch})
        on_every_rank(lambda: data.activate(None, sample_ids=True))
        refuse_too_few_samples(self.schedule, self._num_epochs(state), data, dataloader)
        self._measure_full_length(state)
        self._start_or_restore(state)
        if batches_done:  # no EPOCH_START comes before the rest of this epoch
            if self._active is None:
                raise ValueError(
                    f"The checkpoint is in the middle of epoch {epoch} and holds no state of {type(self).__name__}: "
                    "the epoch's first samples were not measured. Load a checkpoint of an epoch's end instead."
                )
            self._activate(state, self._active)
        self._stretcher.wrap(state)

    def _reset(self) -> None:
        self.records = []
        self._store = self._active = self._stream_keys = None
        self._own_length = self._subset_length = self._generators = None
        self._iterator_is_late = False
        self._clear_measurements()

    def _start_or_restore(self, state: State) -> None:
        """Make the score store, or go on with that of the checkpoint or of an earlier fit."""
        stream_keys = list(self._data.layout.stream_keys)
        loaded, self._loaded = self._loaded, None
        location = self.folder.format(run_name=state.run_name)
        if loaded is not None and "scores" in loaded:
            self._stream_keys = loaded["stream_keys"]
            if "{run_name}" in self.folder:
                location = loaded["folder"]  # Composer gives the resumed run a new name, unless told one
        if self._stream_keys not in (None, stream_keys):
            raise ValueError(
                f"The scores belong to the streams {self._stream_keys}, the training dataset has {stream_keys}: "
                "scores go by sample id, so they would go to the wrong samples. Give the dataset of the run, its "
                "streams in the order that it started with, or start a new run."
            )
        self._stream_keys = stream_keys
        self._run_folder = RunFolder(location)
        if self._store is None:
            self._store = ScoreStore(
                self._data.layout.num_samples,
                alpha=self.alpha,
                relative=self.relative,
                communicator=default_communicator(),
            )
        if loaded is not None and "scores" in loaded:
            self._restore(loaded, state)

    def _measure_full_length(self, state: State) -> None:
        """Learn the batches of a full epoch, and the trainer's own bound on them (train_subset_num_batches)."""
        full_length = len(state.dataloader)  # pyright: ignore
        current = state.dataloader_len
        if current is not None and current != self._own_length and current.value < full_length:
            self._subset_length = current.value
        if self._subset_length is not None:
            full_length = min(full_length, self._subset_length)
        self._stretcher = ScheduleStretcher(full_length)

    def _on_before_dataloader(self, state: State, logger: Logger) -> None:
        self._ids.before_batch()
        if self._generators is not None:
            reproducibility.load_rng_state(self._generators)
            self._generators = None

    # The epoch boundary ----------------------------------------------------------------------------------------

    def _num_epochs(self, state: State) -> int:
        assert state.max_duration is not None, "checked at FIT_START"
        return state.max_duration.value

    def _on_epoch_start(self, state: State, logger: Logger) -> None:
        start = time.perf_counter()
        epoch, num_epochs = state.timestamp.epoch.value, self._num_epochs(state)
        store, layout = self._ready_store(), self._data.layout
        keep_ratio = self.schedule.keep_ratio(epoch, num_epochs)
        mask = select(
            self.selection,
            store.scores,
            self.schedule.num_kept(epoch, num_epochs, store.num_samples),
            first_id=store.first_id,
            epoch=epoch,
            seed=self.seed,
            communicator=store.communicator,
        )
        skip_list = SkipList.from_keep_bits(
            layout,
            self._gather_bits(mask),
            epoch=epoch,
            keep_ratio=keep_ratio,
            method=self.method,
            run=state.run_name,
        )
        record = EpochRecord(
            epoch=epoch,
            keep_ratio=keep_ratio,
            kept=skip_list.num_kept,
            returning=self._count_returning(skip_list),
            unmeasured=store.num_unmeasured(),
            skip_list=f"skip_lists/ep{epoch:04d}.parquet",
            digest=skip_list.digest,
        )
        self._run_folder.write(record.skip_list, to_bytes(skip_list))
        self._active = skip_list
        self._activate(state, skip_list)
        if self._iterator_is_late:
            # Workers that live on draw their seed once, in the run that was cut off; those of this run draw it next.
            self._generators, self._iterator_is_late = reproducibility.get_rng_state(), False
        record.boundary_seconds = time.perf_counter() - start + self._fold_seconds
        self.records = [*self.records, record]
        logger.log_metrics(self._boundary_metrics(record, num_epochs))

    def _gather_bits(self, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """(⌈N / 8⌉,) uint8 from the owners' masks: one bit per sample is all that every rank holds of all samples."""
        store = self._ready_store()
        bits = np.zeros(-(-store.num_samples // 8), np.uint8)
        start, shift = divmod(store.first_id, 8)
        mine = np.packbits(np.concatenate([np.zeros(shift, np.bool_), mask]))
        bits[start : start + len(mine)] = mine
        return store.communicator.all_reduce_sum(bits)  # the owners' bits are disjoint, in a shared byte too

    def _count_returning(self, skip_list: SkipList) -> int:
        if self._active is None:
            return 0
        pairs = zip(self._active.pruned, skip_list.pruned, strict=True)
        return sum(before.difference_cardinality(now) for before, now in pairs)

    def _activate(self, state: State, skip_list: SkipList) -> None:
        on_every_rank(lambda: self._data.activate(skip_list, sample_ids=True))
        length = len(state.dataloader)  # pyright: ignore
        state.dataloader_len = length if self._subset_length is None else min(length, self._subset_length)
        self._own_length = state.dataloader_len
        self._ids.start_epoch()

    def _boundary_metrics(self, record: EpochRecord, num_epochs: int) -> dict[str, float]:
        store = self._ready_store()
        metrics = {
            "pruning/keep_ratio": record.keep_ratio,
            "pruning/kept_samples": record.kept,
            "pruning/returning_samples": record.returning,
            "pruning/unmeasured_samples": record.unmeasured,
            "pruning/boundary_seconds": record.boundary_seconds,
            "pruning/planned_save_ratio": self.schedule.planned_save_ratio(store.num_samples, num_epochs),
        }
        quantiles = store.quantiles(_QUANTILES)
        return metrics | {f"pruning/score_q{round(100 * p):02d}": value for p, value in quantiles.items()}

    # Within a step ---------------------------------------------------------------------------------------------

    def _on_after_dataloader(self, state: State, logger: Logger) -> None:
        state.batch, self._batch_ids = self._ids.take(state.batch)

    def _on_batch_start(self, state: State, logger: Logger) -> None:
        self._stretcher.before_batch(state)

    def _on_before_train_batch(self, state: State, logger: Logger) -> None:
        # Also where a batch is tried again, after it ran out of memory or for a second closure evaluation.
        self._pending: list[Tensor] = []

    def _on_before_forward(self, state: State, logger: Logger) -> None:
        if self.importance is not None:
            state.batch = self.importance.before_forward(state.batch)

    def _on_before_backward(self, state: State, logger: Logger) -> None:
        loss = _total(state.loss)
        if self.importance is not None:
            self.importance.before_backward(state.batch, state.outputs, loss)
        if self.loss_correction and self._active is not None and self._active.keep_ratio < 1:
            state.loss = _scaled(state.loss, 1 / self._active.keep_ratio)

    def _on_after_backward(self, state: State, logger: Logger) -> None:
        if self.importance is not None:
            self._pending.append(self.importance.measure())

    def _on_batch_end(self, state: State, logger: Logger) -> None:
        self._epoch_ids.append(self._batch_ids)
        self._epoch_steps.append(state.timestamp.batch_in_epoch.value - 1)
        if self.importance is not None:
            self._epoch_importance.append(torch.cat(self._pending).detach())
        self._stretcher.after_batch(state)
        if state.timestamp.batch_in_epoch == 1:  # the epoch's bar exists by now
            self._show_progress(state, logger)

    def _show_progress(self, state: State, logger: Logger) -> None:
        planned = self.schedule.planned_save_ratio(self._ready_store().num_samples, self._num_epochs(state))
        shown = {
            "keep_ratio": f"{self.records[-1].keep_ratio:.3f}",
            "kept": self.records[-1].kept,
            "saved": f"{self.save_ratio:.3f} of {planned:.3f}",
        }
        for destination in logger.destinations:
            if isinstance(destination, ProgressBarLogger):
                destination.log_to_pbar(shown)

    def _measurements(self) -> Measurements:
        """This rank's measurements of the epoch so far; the only place that waits for the device."""
        if not self._epoch_ids:
            return self._resumed
        sizes = [len(ids) for ids in self._epoch_ids]
        ids = torch.cat(self._epoch_ids).cpu().numpy()
        importance = np.zeros(len(ids))
        if self.importance is not None:
            importance = torch.cat(self._epoch_importance).double().cpu().numpy()
        steps = np.repeat(np.array(self._epoch_steps, np.int64), sizes)
        measured = Measurements(ids=ids, importance=importance, steps=steps)
        return Measurements.concatenate([self._resumed, measured])

    def _on_epoch_end(self, state: State, logger: Logger) -> None:
        start = time.perf_counter()
        store, record = self._ready_store(), self.records[-1]
        measurements = self._measurements()
        self._clear_measurements()
        if self.importance is None:
            forwarded = int(store.communicator.all_reduce_sum(np.array([len(measurements)], np.int64))[0])
        else:
            update = store.update(measurements)
            forwarded, record.non_finite = update.measured, update.non_finite
        record.forwarded = forwarded // (self._data.replication or 1)
        self._fold_seconds = time.perf_counter() - start
        logger.log_metrics(
            {
                "pruning/save_ratio": self.save_ratio,
                "pruning/forwarded_samples": record.forwarded,
                "pruning/non_finite_measurements": record.non_finite,
            }
        )
        self._run_folder.write("run.json", json.dumps(self._summary(state), indent=1).encode())

    def _clear_measurements(self) -> None:
        self._epoch_ids, self._epoch_importance, self._epoch_steps = [], [], []
        self._resumed = Measurements()

    @property
    def save_ratio(self) -> float:
        """1 - forwarded / (N · epochs) over the epochs that have ended (TED, eq. 24); padding repeats count."""
        done = [record for record in self.records if record.forwarded]
        if not done:
            return 0.0
        return 1 - sum(record.forwarded for record in done) / (self._data.full_epoch_size * len(done))

    def _summary(self, state: State) -> dict[str, Any]:
        num_samples, num_epochs = self._ready_store().num_samples, self._num_epochs(state)
        return {
            "method": self.method,
            "settings": repr(self),
            "run": state.run_name,
            "dataset": self._data.layout.fingerprint,
            "samples": num_samples,
            "max_epochs": num_epochs,
            "planned_save_ratio": self.schedule.planned_save_ratio(num_samples, num_epochs),
            "save_ratio": self.save_ratio,
            "epochs": [asdict(record) for record in self.records],
        }

    def _on_fit_end(self, state: State, logger: Logger) -> None:
        """Write the manifest of what the last pruned epoch kept, and let go of the dataset."""
        pruned = [record for record in self.records if record.keep_ratio < 1]
        if pruned:
            scores = self._ready_store().gather()
            skip_list = self._read_list(pruned[-1])
            on_rank_zero(lambda: write_manifest(self._run_folder.path("manifest.parquet"), skip_list, scores))
        on_every_rank(lambda: self._data.activate(None, sample_ids=False))

    def _read_list(self, record: EpochRecord) -> SkipList:
        data = self._run_folder.read(record.skip_list)
        source = self._run_folder.path(record.skip_list)
        return from_bytes(data, source=source, layout=self._data.layout, digest=record.digest)

    def _ready_store(self) -> ScoreStore:
        if self._store is None:
            raise RuntimeError("Pruning has not started: the scores exist from FIT_START on.")
        return self._store

    # Checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Scores, records and the measurements of an unfinished epoch, of all ranks; every rank must call it."""
        if self._store is None:
            return {"version": _STATE_VERSION}
        gather = self._store.communicator.all_gather
        mine = self._measurements()
        return {
            "version": _STATE_VERSION,
            "scores": self._store.state_dict(),
            "records": [asdict(record) for record in self.records],
            "stream_keys": self._stream_keys,
            "order": self._ids.order,
            "folder": self._run_folder.location,
            "measurements": {
                "ids": np.concatenate(gather(mine.ids)),
                "importance": np.concatenate(gather(mine.importance)),
                "steps": np.concatenate(gather(mine.steps)),
            },
            # Pickled, since a sharded checkpoint would take tensors for parameters.
            "generators": pickle.dumps(reproducibility.get_rng_state()),
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Keep the state until FIT_START, when the dataset is known."""
        del strict
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"The checkpoint's pruning state has version {state.get('version')}, but this ted-stream reads "
                f"version {_STATE_VERSION}; resume with the version that wrote it."
            )
        self._loaded = state

    def _restore(self, loaded: dict[str, Any], state: State) -> None:
        store = self._ready_store()
        store.load_state_dict(loaded["scores"])
        self.records = [EpochRecord(**record) for record in loaded["records"]]
        self._clear_measurements()
        # Any share will do: owners get theirs when the epoch is folded.
        share = slice(store.communicator.rank, None, store.communicator.world_size)
        self._resumed = Measurements(**{name: values[share] for name, values in loaded["measurements"].items()})
        if self.records:
            self._active = self._read_list(self.records[-1])
        if state.timestamp.batch_in_epoch > 0:
            order = loaded.get("order", {})
            if order != self._ids.order:
                raise ValueError(
                    f"The checkpoint is in the middle of epoch {state.timestamp.epoch.value}, and the order of its "
                    f"samples hangs on what has changed since: {order_difference(order, self._ids.order)}. Samples "
                    "would be trained on twice or not at all in the rest of the epoch. Change it back, or load a "
                    "checkpoint of an epoch's end instead."
                )
            # Where a dataset resumes by itself, Composer restores random generators at the start of an epoch alone.
            self._generators = pickle.loads(loaded["generators"])
        self._iterator_is_late = state.timestamp.batch_in_epoch == 0 and state.dataloader.persistent_workers  # pyright: ignore


def _total(loss: Any) -> Tensor:
    """The tensor whose gradient shows the factor that the trainer applies to all of the loss."""
    if isinstance(loss, Tensor):
        return loss
    if isinstance(loss, Mapping):
        return loss["total"] if "total" in loss else next(iter(loss.values()))
    return loss[0]


def _scaled(loss: Any, factor: float) -> Any:
    if isinstance(loss, Tensor):
        return loss * factor
    if isinstance(loss, Mapping):
        return {key: value * factor for key, value in loss.items()}
    return type(loss)(value * factor for value in loss)
