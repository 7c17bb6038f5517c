"""Data pruning as a Composer algorithm: its arguments, its place among the algorithms, its state."""

from collections.abc import Callable
from os import PathLike
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from ted_stream.engine import EpochRecord, ProgressLike, PruningEngine, RunFolder, checked_folder
from ted_stream.methods import Method
from ted_stream.pruning.settings import check_whole
from ted_stream.trainers.composer.checkpoints import link_newest_of
from ted_stream.trainers.composer.requirements import refuse_wrong_use
from ted_stream.trainers.composer.run import ComposerRun
from ted_stream.trainers.requirements import check_settings, checked_output_layer

__all__ = ["DataPruning", "unchanged"]

_EVENTS = {event for event in Event if hasattr(ComposerRun, event.value)}


def unchanged(batch: Any) -> Any:
    """The batch itself."""
    return batch


class DataPruning(Algorithm):
    """Prunes the training set at every epoch boundary, by any method: ``DataPruning(TED(0.7))``.

    The model, the loss and the learning-rate schedule stay as they are: an epoch of fewer batches counts as one epoch.
    The training dataloader must be a torch DataLoader over a :class:`~ted_stream.PrunedStreamingDataset` (or any
    dataset made :class:`~ted_stream.reading.Prunable`), or over a map-style dataset with a
    :class:`~ted_stream.PrunedSampler`.

    The run folder holds ``skip_lists/ep0007.parquet`` for every epoch, ``run.json``, the latest scores, and at the end
    ``manifest.parquet``: the samples that the last pruned epoch kept, with their scores. A run begins in a folder that
    holds none, or one of the same settings that was stopped, of which no checkpoint was loaded.

    Args:
        method: what to measure, keep and weigh.
        folder: of the run, a local path or a URI that streaming can up- and download; ``{run_name}`` is filled in.
        seed: of ties and draws.
        progress: how far learning-rate schedules come in a pruned epoch: its share of all ``samples`` that the run is
            planned to forward, or of (N,) sizes of these by id, such as tokens; or ``epochs``, one full epoch, as it is
            by default where a method's counts are its own.
        output_layer: dotted name of the layer that makes the logits, where it is not found by what enters the loss.
        allow_other_settings: resume a checkpoint of another method, of other settings, another seed or progress, with
            its scores.
        overwrite: replace an earlier run in the folder, where this one does not go on with it.

    Attributes:
        claimed: run folders that this object's runs have had, and may have again.
        batch_transform: what the trainer does to a batch before its first event has it; set while it fits.

    Raises:
        TypeError: for an argument of another type, at construction.
        ValueError: for a value out of range, at construction.
    """

    def __init__(
        self,
        method: Method,
        *,
        folder: str | PathLike[str] = "ted_stream_runs/{run_name}",
        seed: int = 0,
        progress: ProgressLike | None = None,
        output_layer: str | None = None,
        allow_other_settings: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.method = method
        self.folder = checked_folder(folder)
        self.seed = check_whole("seed", seed, fix="it seeds ties and draws.")
        self.progress = check_settings(method, progress, allow_other_settings, overwrite)
        self.output_layer = checked_output_layer(output_layer, method)
        self.allow_other_settings = allow_other_settings
        self.overwrite = overwrite
        self.claimed: dict[str, RunFolder] = {}
        self.batch_transform: Callable[[Any], Any] = unchanged
        self._run: ComposerRun | None = None
        self._loaded: dict[str, Any] | None = None

    def __repr__(self) -> str:
        names = ("folder", "seed", "progress", "output_layer", "allow_other_settings", "overwrite")
        return f"DataPruning({self.method!r}, {', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def engine(self) -> PruningEngine:
        """The run: scores, records, output layer.

        Raises:
            RuntimeError: before FIT_START.
        """
        if self._run is None:
            raise RuntimeError("Pruning has not started: the engine exists from FIT_START on.")
        return self._run.engine

    @property
    def records(self) -> list[EpochRecord]:
        """Of the epochs so far."""
        return [] if self._run is None else self._run.engine.records

    @property
    def save_ratio(self) -> float:
        """1 - forwarded / what full data forwards, over the epochs that have ended (TED, eq. 24)."""
        return 0.0 if self._run is None else self._run.engine.save_ratio

    def match(self, event: Event, state: State) -> bool:
        """Whether the event is one that pruning acts on."""
        del state
        return event in (Event.INIT, Event.FIT_START) or (event in _EVENTS and self._run is not None)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Act on the event."""
        if event == Event.INIT:
            # Last in the list is first at AFTER_* events and last at BEFORE_* events: the ids are gone before another
            # algorithm sees the batch, the mask goes onto what the model is shown, and the loss is final.
            state.algorithms = [other for other in state.algorithms if other is not self] + [self]
            link_newest_of(state)
            return
        if event == Event.FIT_START:
            refuse_wrong_use(state, self, DataPruning)
            if self._run is None or self._loaded is not None or state.timestamp.batch == 0:
                self._run = ComposerRun(self, state, self._loaded)  # nothing counts of an earlier run of this object
                self._loaded = None
        getattr(self._run, event.value)(state, logger)

    def release(self, state: State) -> None:
        """Make the dataset whole again, and take the hooks off the model; again without effect."""
        if self._run is not None:
            self._run.release(state)

    def state_dict(self) -> dict[str, Any]:
        """Scores, records and an unfinished epoch's measurements of all ranks, and the generators; collective.

        Tensors, numbers and text, which load with ``weights_only=True``.
        """
        if self._loaded is not None:  # not begun yet
            return self._loaded
        return {**super().state_dict(), **({} if self._run is None else self._run.state_dict())}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Keep the state until FIT_START, when the dataset is known."""
        del strict
        self._loaded = state
