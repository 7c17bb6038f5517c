"""Data pruning around a loop of one's own: its arguments, its epochs and batches, its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ted_stream.engine import EpochRecord, ProgressLike, PruningEngine, Ranks, RunFolder, checked_folder, filled_in
from ted_stream.engine.metrics import boundary_metrics, epoch_metrics
from ted_stream.methods import Method
from ted_stream.pruning.settings import check_whole
from ted_stream.trainers import requirements
from ted_stream.trainers.loop.arguments import at_least_one, check_model, new_run_name
from ted_stream.trainers.reading import EpochReader, checked_data
from ted_stream.trainers.schedules import StretchedScheduler, steps_done
from ted_stream.trainers.steps import LoopSteps

__all__ = ["Pruner"]


class Pruner:
    """Prunes the training set of a loop at every epoch's start, by any method.

    ::

        with Pruner(TED(0.7), model, loader, epochs=90) as pruner:
            for epoch in pruner:
                for x, y in pruner.batches():
                    loss = pruner.loss(cross_entropy(model(x), y))
                    loss.backward(); optimizer.step(); optimizer.zero_grad()

    Make it on every rank, once the model is what the loop calls (on its device, in DDP, FSDP2 or ``torch.compile``).
    Every batch goes through the model with gradients, and its loss through :meth:`loss`; of several such passes of a
    closure or SAM the last counts. Each batch is one where gradients are accumulated; for parts, :meth:`microbatches`.

    Args:
        method: what to measure, keep and weigh.
        model: that is trained, as the loop calls it.
        loader: a torch DataLoader over a :class:`~ted_stream.PrunedStreamingDataset` (or any dataset made
            :class:`~ted_stream.reading.Prunable`), or over a map-style one with a :class:`~ted_stream.PrunedSampler`.
        epochs: T, of the whole run.
        folder: of the run, a local path or a URI; ``{run_name}`` is filled in.
        run_name: by default the time at which rank 0 makes this object, and four random digits.
        seed: of ties and draws.
        progress: by what stretched schedulers come on: ``samples``, (N,) sizes of these by id, such as tokens, or
            ``epochs``, where a method has its own counts.
        output_layer: dotted name of the layer that makes the logits, where it is not found by what enters the loss.
        loss_function: of (outputs, batch), as the loop computes it: to be looked at more closely, and for ``Loss``.
        allow_other_settings: go on with a state of another method, of other settings, another seed or progress.
        overwrite: replace an earlier run in the folder, where this one does not go on with it.

    Attributes:
        metrics: of the latest epoch by name: what was kept, and once its batches are over what it saved; on every rank.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for a value out of range, a name that leads out of the folder, or a loader that cannot be served.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        loader: DataLoader,
        *,
        epochs: int,
        folder: str | PathLike[str] = "ted_stream_runs/{run_name}",
        run_name: str | None = None,
        seed: int = 0,
        progress: ProgressLike | None = None,
        output_layer: str | None = None,
        loss_function: Callable[[Any, Any], Any] | None = None,
        allow_other_settings: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.progress = requirements.check_settings(method, progress, allow_other_settings, overwrite)
        check_model(model)
        self.epochs = at_least_one("epochs", epochs, fix="it is the number of passes over the training set.")
        self.model, self.loader = model, loader
        seed, folder = check_whole("seed", seed, fix="it seeds ties and draws."), checked_folder(folder)
        output_layer = requirements.checked_output_layer(output_layer, method)
        self._ranks = ranks = Ranks()
        self._reader = EpochReader(loader, data := checked_data(loader, ranks), ranks)
        ranks.on_every_rank(lambda: data.activate(None, sample_ids=False))
        self.full_length = len(loader)
        self.run_name = ranks.on_rank_zero(lambda: run_name or new_run_name())
        self._keeps_folder = run_name is None and "{run_name}" in folder
        folder, options = filled_in(folder, self.run_name), {"output_layer": output_layer, "loss": loss_function}
        options |= {"allow_other_settings": allow_other_settings, "overwrite": overwrite, "progress": self.progress}
        self.engine = PruningEngine(method, data, folder=folder, seed=seed, ranks=ranks, **options)
        self._steps = LoopSteps(self.engine.step, model, moves_batches=loss_function is not None)
        self.metrics: dict[str, float] = {}
        self._state = "new"  # then "between" epochs, "open" (an epoch has begun), "reading" its batches, "over"

    @property
    def records(self) -> list[EpochRecord]:
        """Of the epochs so far."""
        return self.engine.records

    @property
    def save_ratio(self) -> float:
        """1 - forwarded / what full data forwards, over the epochs that have ended (TED, eq. 24)."""
        return self.engine.save_ratio

    def __enter__(self) -> Pruner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._state != "over":  # the loop over epochs was left early
            self._stop(self.engine.finish if kind is None and self._state != "new" else self.engine.release)

    def __iter__(self) -> Iterator[int]:
        """The epochs that are left, 0-based.

        Raises:
            ValueError: if the run cannot be begun, or gone on with.
            RuntimeError: if an epoch's batches were not all taken.
        """
        if self._state != "new":
            raise RuntimeError("A Pruner is one run, and this one has begun. Make another for another run.")
        self._begin()
        while (reader := self._reader).epoch < self.epochs:
            if not reader.done:
                self.metrics = boundary_metrics(self.engine, self.engine.begin_epoch(reader.epoch))
            self._state = "open"
            yield reader.epoch
            if self._state != "between":
                raise RuntimeError(
                    f"Epoch {reader.epoch} ended after {reader.done} of its {len(self.loader)} batches, so the rest of "
                    "its samples would go unseen. Take all of batches() in every epoch, or leave the loop over epochs."
                )
        self._stop(self.engine.finish)

    def _begin(self) -> None:
        engine, reader = self.engine, self._reader
        reader.begin()
        engine.start(self.model, self.loader, epochs=self.epochs, run=self.run_name, at=(reader.epoch, reader.done))
        self._steps.attach()
        requirements.warn_of_single_rows(self.model, engine, self.loader, reader.epoch)
        self._state = "between"

    def _stop(self, stop: Callable[[], None]) -> None:
        self._steps.detach()
        self._state = "over"
        stop()

    def batches(self) -> Iterator[Any]:
        """The batches of this epoch, as the loader makes them, without sample ids.

        Raises:
            RuntimeError: outside of an epoch, or twice in one; or if a batch's loss or backward pass did not come.
            ValueError: if what the loop does cannot be measured right, after the epoch's first batch.
        """
        if self._state != "open":
            raise RuntimeError("batches() belongs into the loop over the pruner's epochs, once in each.")
        self._state = "reading"
        for batch, ids, segments in self._reader.read():
            self._steps.begin(batch, ids, segments)
            yield batch
            self._settle()
        self.metrics = self.metrics | epoch_metrics(self.engine, self.engine.end_epoch())
        self._reader.end_epoch()
        self._state = "between"

    def _settle(self) -> None:
        """Count the batch, once its backward pass is over."""
        if not self._steps.has_batch:
            return
        self._steps.refuse_unfinished(self._reader.epoch, self._reader.done)
        if not self.engine.is_checked:
            self.engine.check()
        self.engine.step.commit(self._reader.done)
        self._steps.drop()
        self._reader.done += 1

    def loss(self, loss: Tensor) -> Tensor:
        """The loss to differentiate: the batch's. Its gradient is that times what the method multiplies it by.

        Args:
            loss: () before it is divided for accumulation or scaled; or (B,), a loss per sample, whose mean is taken.

        Raises:
            TypeError: if it is no tensor.
            RuntimeError: outside of a batch, without a forward pass of it, or twice after one.
            ValueError: if the loss, or the layer that it hangs on, cannot be measured or weighed right.
        """
        return self._steps.loss(loss)

    def microbatches(self, batch: Any, size: int) -> Iterator[Any]:
        """The batch in parts, for a forward and a backward pass each; each loss counts by its share of the samples.

        The gradients of means over samples add up to the batch's; means over tokens count by samples, part by part.

        Args:
            batch: of :meth:`batches`, moved to the device or changed as the loop likes, with its rows in order.
            size: rows of a part, the last may have fewer.

        Raises:
            RuntimeError: outside of a batch, or if a part's loss or backward pass did not come.
        """
        return self._steps.microbatches(batch, at_least_one("size", size, fix="it is the rows to a forward pass."))

    def stretch(self, scheduler: LRScheduler, *, accumulation: int = 1) -> StretchedScheduler:
        """A scheduler that is stepped after every optimizer step, to where a full-data run would have it.

        Those that are stepped once an epoch need nothing.

        Args:
            scheduler: made for the steps of a full-data run, ``full_length`` batches an epoch.
            accumulation: batches to an optimizer step; the last ones of an epoch make a step too.
        """
        at_least_one("accumulation", accumulation, fix="it is the number of batches to an optimizer step.")

        def position() -> float:
            at = self._reader.epoch, self._reader.done + self._steps.has_batch
            lengths = len(self.loader), self.full_length
            return steps_done(self.engine, at, lengths, accumulation=accumulation)

        return StretchedScheduler(scheduler, position)

    def state_dict(self) -> dict[str, Any]:
        """All that a run must know to go on; every rank must call it, after an optimizer step or between two epochs.

        Raises:
            RuntimeError: between a batch's loss and the end of its backward pass.
        """
        self._settle()
        engine, run = self.engine.state_dict(), self.run_name
        return {**self._reader.state_dict(), "engine": engine, "run": run}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, before the first epoch; every rank must call it.

        Raises:
            RuntimeError: if the run has begun.
            ValueError: if the state is of another dataset, method, seed, progress or order.
        """
        if self._state != "new":
            raise RuntimeError("load_state_dict() comes before the loop over epochs.")
        self._reader.load_state_dict(state)
        if self._keeps_folder:
            self.run_name, self.engine.folder = state["run"], RunFolder(state["engine"]["folder"], self._ranks)
        self.engine.load_state_dict(state["engine"])
