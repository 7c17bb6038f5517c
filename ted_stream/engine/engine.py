"""The run of a pruning method: measure, score, choose, and train the next epoch on what is kept."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from ted_stream.engine.choosing import choose_skip_list, make_record
from ted_stream.engine.data import PrunableData, full_epoch_forwards, refuse_too_few_samples
from ted_stream.engine.folding import fold_epoch
from ted_stream.engine.given import Given
from ted_stream.engine.guard import Guard
from ted_stream.engine.metrics import tell_epoch
from ted_stream.engine.pace import Pace
from ted_stream.engine.plan import RunPlan
from ted_stream.engine.progress import BY_EPOCHS, Progress, refuse_other_progress
from ted_stream.engine.ranks import Ranks
from ted_stream.engine.record import EpochRecord, forwarded_in
from ted_stream.engine.run_folder import RunFolder
from ted_stream.engine.state import (
    goes_on_at,
    identity_of,
    load_measurements,
    pack_measurements,
    refuse_other_state,
    refuse_other_streams,
    streams_of,
    warn_of_missing_scores,
)
from ted_stream.engine.step import StepRecorder
from ted_stream.engine.writing import check_lists, read_list, summary_of_run, write_last_manifest, write_scores
from ted_stream.methods import Method
from ted_stream.pruning import Owned, ScoreStore
from ted_stream.pruning.probe import StepProbe
from ted_stream.skip_list import SkipList, to_bytes

__all__ = ["PruningEngine"]

At = tuple[int, int]


class PruningEngine:
    """Prunes a training set epoch by epoch; a trainer calls it, and it knows none.

    In every epoch the samples that are trained on are measured within the steps that train on them (:attr:`step`). At
    the epoch's end the measurements are folded into running scores, and before the next one the method chooses what to
    keep, a skip-list is written, and the data drops the rest.

    ``start``, then per epoch ``begin_epoch``, the steps, ``check`` after the first microbatch, and ``end_epoch``; then
    ``finish``, and in any case ``release``. All are collective but ``release`` and what :attr:`step` does. After
    ``load_state_dict``, ``start`` goes on where the state was saved.

    Args:
        method: what to measure, remember, keep and weigh.
        data: decides which samples an epoch has.
        folder: of the run, a local path or a URI.
        seed: of ties and draws.
        ranks: among which an epoch is shared out; all ranks of torch's default process group where it is ``None``.
        progress: by what learning rates come on.
        output_layer: name of the layer that makes the logits, where it is not found by what enters the loss.
        loss: the model's own loss function of (outputs, batch), where the trainer has one.
        allow_other_settings: go on with a state that another method, other settings or another seed made.
        overwrite: replace an earlier run in the folder.

    Attributes:
        step: what a training step must call.
        records: of the epochs so far, the last one perhaps unfinished.
        active: the skip-list of the current epoch.
        store: the running scores, this rank's share.
        output_layer: dotted name of the layer that makes the logits, once :meth:`check` knows it.
        plan: the length of the run, and what it keeps.
        pace: what a sample takes; of what is not training within an epoch, a trainer may tell it.
    """

    def __init__(
        self,
        method: Method,
        data: PrunableData,
        *,
        folder: str,
        seed: int = 0,
        ranks: Ranks | None = None,
        progress: Progress = BY_EPOCHS,
        output_layer: str | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        allow_other_settings: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.method, self.data, self.seed = method, data, seed
        self.ranks = ranks or Ranks()
        self.folder = RunFolder(folder, self.ranks)
        self.records: list[EpochRecord] = []
        self.active: SkipList | None = None
        samples, communicator = self.ranks.on_every_rank(lambda: data.layout.num_samples), self.ranks.communicator
        self.store = ScoreStore(samples, method.running(), labelled=method.needs_labels, communicator=communicator)
        self.ranks.on_every_rank(lambda: progress.refuse_other_length(samples))
        self.progress = progress
        self._given = self.ranks.on_every_rank(lambda: Given(method, data.layout, self.store))
        self.plan = RunPlan(method=method, num_samples=samples, epochs=0)
        self._probe = StepProbe(method.measure(), weighted=method.weighs_samples, output_layer=output_layer, loss=loss)
        self._guard = Guard(method, self.ranks, self.records)
        self.step = StepRecorder(self._probe, labelled=method.needs_labels, when_diverged=self._guard.say_diverged)
        self.output_layer = output_layer
        self._streams = streams_of(data.layout)
        self._allow_other_settings, self._overwrite = allow_other_settings, overwrite
        self._fold_seconds, self._run, self.pace = 0.0, "", Pace()

    def use(self, data: PrunableData) -> None:
        """Go on with this data object.

        Raises:
            ValueError: if it has other streams than the data that the scores belong to.
        """
        refuse_other_streams(self._streams, streams_of(self.ranks.on_every_rank(lambda: data.layout)))
        self.data = data

    def start(
        self, model: nn.Module, loader: DataLoader, *, epochs: int, run: str, at: At = (0, 0), last_share: float = 1.0
    ) -> None:
        """Begin, or go on in the middle of a run.

        Args:
            model: that is trained.
            loader: of the training set.
            epochs: T, of the whole run.
            run: its name.
            at: the epoch, and how many of its batches have been trained on.
            last_share: the share of the last epoch that is trained on, in (0, 1].

        Raises:
            ValueError: if it is in an epoch that nothing is known of, or beyond the run's end, or epochs are too small.
            FileExistsError, FolderInUseError: if the folder holds another run, or a job that is at work has it.
        """
        epoch, batches_done = at
        full = full_epoch_forwards(self.data, loader, world_size=self.ranks.world_size)
        self.plan = replace(self.plan, epochs=epochs, last_share=last_share, full_epoch=full)
        self._run = run
        self.plan.refuse_to_end_before(epoch, batches_done)
        self.plan.warn_if_nothing_is_pruned()
        if batches_done and self.active is None:
            raise ValueError(
                f"The checkpoint is in the middle of epoch {epoch} and holds no state of {type(self.method).__name__}: "
                "the epoch's first samples were not measured. Load a checkpoint of an epoch's end instead."
            )
        if epoch and not self.records:
            warn_of_missing_scores(epoch)
        refuse_too_few_samples(self.plan, self.data, loader)
        behind = self.records[-1].epoch + 1 if self.records else None
        self.folder.claim(self.summary, goes_on_at=behind, overwrite=self._overwrite)
        write_scores(self.folder, self.records, self.method, self.store, self.data.layout)
        self._probe.attach(model)
        self._activate(self.active if batches_done else None)

    def check(self) -> None:
        """Refuse a loss or output layer that cannot be measured right, after an epoch's first microbatch; collective.

        Raises:
            ValueError: saying what was seen, and what to change.
        """
        self.ranks.on_every_rank(self._probe.check)
        self.output_layer = self._probe.layer or self.output_layer

    def finish(self) -> None:
        """Write the manifest of what the last pruned epoch kept, and let go of the data."""
        self.folder.write_run(self.summary)
        write_last_manifest(self.folder, self.records, self.store.num_samples)
        self.folder.write_run(self.summary, is_finished=True)
        self.ranks.on_every_rank(self.release)

    def release(self) -> None:
        """Let go of the data, the model and the folder; not collective, and again without effect."""
        self.folder.release()
        self._probe.detach()
        self.data.activate(None, sample_ids=False)

    def begin_epoch(self, epoch: int) -> EpochRecord:
        """Choose what an epoch (0-based) keeps, write its skip-list, and make it active."""
        start = time.perf_counter()
        self._probe.look_again()  # losses, and what is frozen, may change between epochs
        owned = Owned(self.store, epoch=epoch, seed=self.seed, given=self._given.owned)
        skip_list, factor, self.store.pending = choose_skip_list(self.plan, owned, self.data.layout, self._run)
        # An epoch that was interrupted in its first batch begins again, and counts once.
        before = [record for record in self.records if record.epoch < epoch]
        previous = self.active
        if before and before[-1] is not self.records[-1]:
            previous = read_list(self.folder, before[-1], self.data.layout)
        record = make_record(owned, skip_list, previous if before else None, factor)
        record.kept_size = self.progress.kept_size(skip_list)
        file = cache(partial(to_bytes, skip_list))  # made once, for the run folder and for the readers beside rank 0
        self.folder.write(record.skip_list, file)
        self.records[:] = *before, record
        self._activate(skip_list, file)
        record.boundary_seconds = time.perf_counter() - start + self._fold_seconds
        self.pace.begin()
        return record

    def _activate(self, skip_list: SkipList | None, file: Callable[[], bytes] | None = None) -> None:
        self.ranks.on_every_rank(lambda: self.data.activate(skip_list, sample_ids=True, file=file))
        if skip_list is not None:
            self.active = skip_list
            weights = None if skip_list.weights is None else skip_list.weights_by_id()
            self.step.weigh(weights, self.records[-1].loss_factor)

    def end_epoch(self) -> EpochRecord:
        """Fold the epoch's measurements into the running scores, and warn if the selection degenerates.

        Raises:
            SelectionWarning: where warnings are made errors, when all is written; on rank 0, a RuntimeError on others.
        """
        start = time.perf_counter()
        record = self.records[-1]
        measurements = self.step.measurements()
        self.step.clear()
        counts = fold_epoch(self.method, self.store, measurements, record.epoch)
        record.forwarded, record.non_finite = (count // (self.data.replication or 1) for count in counts)
        self.pace.end(record.forwarded)
        found = self._guard.look(self.plan, measurements)
        self._fold_seconds = time.perf_counter() - start
        self.folder.refuse_other_job()
        write_scores(self.folder, self.records, self.method, self.store, self.data.layout)
        self.folder.write_run(self.summary)
        tell_epoch(self)
        self._guard.say(found)
        return record

    def scores(self) -> NDArray[np.float32]:
        """(N,) float32 running scores by sample id, on every rank; NaN for a sample that was never measured."""
        return self.store.gather()

    @property
    def is_checked(self) -> bool:
        """Whether :meth:`check` has looked at the epoch's first microbatch."""
        return self._probe.is_checked

    @property
    def save_ratio(self) -> float:
        """1 - forwarded / what full data forwards, over the epochs that have ended; padding counts in both."""
        return self.plan.saved(forwarded_in(self.records))

    def summary(self) -> dict[str, Any]:
        """What ``run.json`` holds."""
        return summary_of_run(self, self._run)

    @property
    def _identity(self) -> dict[str, Any]:
        own = identity_of(self.method, self.seed, self._given.digests, seed_samples=self.data.seed_samples)
        return {**own, **self._streams}

    def state_dict(self, *, everywhere: bool = True) -> dict[str, Any]:
        """Scores, records and the measurements of an unfinished epoch, of all ranks, as tensors, numbers and text.

        Args:
            everywhere: every rank gets all of it, 4·N bytes a column of scores and 8 bytes a measurement; else rank 0
                alone, and the state of the others serves for nothing.
        """
        measurements = self.step.measurements()
        self.store.label(measurements)
        return {
            **self._identity,
            "folder": self.folder.location,
            "output_layer": self.output_layer or "",
            "progress": self.progress.name,
            "records": [asdict(record) for record in self.records],
            **self._guard.state_dict(measurements),
            "scores": self.store.state_dict(everywhere=everywhere),
            "measurements": pack_measurements(measurements, self.ranks.communicator, everywhere=everywhere),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, on any number of ranks.

        Raises:
            ValueError: if the state is of another version, dataset, method, seed or progress, or of other settings.
            SkipListError: if the skip-list of its last epoch, or in a local folder of any, is another than it was.
            OSError: if that skip-list cannot be read.
        """
        refuse_other_state(state, self._identity, allow_other_settings=self._allow_other_settings)
        self.store.load_state_dict(state["scores"])
        self.records[:] = (EpochRecord(**record) for record in state["records"])
        before = state.get("progress", "epochs")  # as it was before there was a choice
        if not self._allow_other_settings:
            refuse_other_progress(before, self.progress)
        elif before != self.progress.name and self.progress.sizes is not None:
            for record in self.records:
                record.kept_size = self.progress.kept_size(read_list(self.folder, record, self.data.layout))
        self._guard.load_state_dict(state)
        self.output_layer = self._probe.output_layer = goes_on_at(self.output_layer, state["output_layer"])
        self.step.clear(load_measurements(state["measurements"], self.ranks))
        if self.records:
            check_lists(self.folder, self.records[:-1])
            self.active = read_list(self.folder, self.records[-1], self.data.layout)
