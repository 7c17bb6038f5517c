"""What Composer leaves out when a run without pruning goes on; with pruning, `DataPruning` sees to it."""

from __future__ import annotations

from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from ted_stream.engine import Ranks
from ted_stream.engine.data import start_streaming_at
from ted_stream.engine.generators import get_generators, set_generators

__all__ = ["Resuming"]


class Resuming(Callback):
    """Goes on with the epoch's own order of samples and, within an epoch, with the random generators."""

    def __init__(self) -> None:
        self._ranks = Ranks()
        self._loaded: list[dict[str, Any]] | None = None
        self._generators: list[dict[str, Any]] | None = None  # to go on with at the next batch
        self._iterator_is_late = False

    def state_dict(self) -> dict[str, Any]:
        """The random generators of all ranks; collective."""
        return {"generators": get_generators(self._ranks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep them until it is known where the run goes on."""
        self._loaded = state["generators"]

    def fit_start(self, state: State, logger: Logger) -> None:
        """Put a streaming dataset at the epoch that comes; it would repeat the order of the one that has ended."""
        del logger
        loader: Any = state.dataloader
        is_streaming, in_epoch = hasattr(loader.dataset, "next_epoch"), state.timestamp.batch_in_epoch > 0
        if is_streaming and not in_epoch:
            start_streaming_at(loader.dataset, state.timestamp.epoch.value, self._ranks)
        if is_streaming and in_epoch:
            self._generators = self._loaded
        # Workers that live on draw their seed once, in the run that was cut off; those of this run draw it next.
        self._iterator_is_late = self._loaded is not None and not in_epoch and loader.persistent_workers

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Keep what workers of a run that goes on must not draw from."""
        del state, logger
        if self._iterator_is_late:
            self._generators, self._iterator_is_late = get_generators(self._ranks), False

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """A batch is about to be read."""
        del state, logger
        if self._generators is not None:
            set_generators(self._generators, self._ranks)
            self._generators = None
