"""Passes of a surrogate over the training split: no augmentation, evaluation mode, every sample once, by its id."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.files import write_bytes
from ted_stream.methods.static import Recorded, ScoredBatch, StaticMethod
from ted_stream.pruning.batches import batch_size, class_labels
from ted_stream.pruning.measures import Microbatch
from ted_stream.pruning.output_layer import shifts_labels

from .logit_layer import LogitLayer
from .loop_host import Host
from .samples_by_id import SamplesById
from .scored_columns import LABELS, ScoredColumns
from .settings import ConfigError

__all__ = ["Passes"]

COMPLETE = "complete"


class Passes:
    """The passes of one surrogate, of which those that are over, and the chunks of one that are done, are not repeated.

    Every pass writes a folder of its own, and the one before is removed when it is complete: what a pass reads of the
    one before is never overwritten.

    Args:
        method: what is written of each sample.
        host: of the surrogate.
        ids: (M,) int64 of the samples, ascending.
        folder: local, of these passes; on several nodes one that they share.
        output_layer: name of the layer that makes the logits, where it is not to be looked for.
        label: what the surrogate is called in lines of progress.
        bos_id: the token with which the tokenizer of the samples begins a sequence, where the method needs tokens.
    """

    def __init__(
        self,
        method: StaticMethod,
        host: Host,
        ids: NDArray[np.int64],
        folder: Path,
        *,
        output_layer: str | None = None,
        label: str = "",
        bos_id: int | None = None,
    ) -> None:
        self.method, self.host, self.ids, self.folder = method, host, ids, folder
        self._label, self._bos_id = label, bos_id
        self._samples = SamplesById(host)
        self._batch = max(1, host.settings.data.eval_batch_size // host.ranks.world_size)
        self._layer = None
        if method.needs_features and method.needs_surrogate:
            self._layer = LogitLayer(host.network, output_layer)
        self._shifted = shifts_labels(host.network)

    # Which passes ------------------------------------------------------------------------------------------------

    def after_epoch(self, epoch: int) -> None:
        """Make the pass that follows so many epochs, if there is one; collective.

        Raises:
            ConfigError: the method needs a pass after every epoch, and earlier ones are missing.
            ValueError: the method cannot score such samples.
        """
        if self.method.passes_every_epoch or epoch == self.host.epochs:
            self.make(epoch)

    def make(self, epoch: int) -> None:
        """The pass after so many epochs, or what is left of it; collective."""
        ranks = self.host.ranks
        latest = ranks.on_rank_zero(self._latest)
        if latest is not None and epoch <= latest:
            return  # made before, by a run that was cut off later
        if self.method.passes_every_epoch and epoch != (latest or 0) + 1:
            raise ConfigError(
                f"{type(self.method).__name__} needs a pass after every epoch, but the run in "
                f"{self.host.settings.folder} goes on after epoch {epoch} with passes up to {latest or 0}; begin anew: "
                "autoresume=false overwrite=true, or folder= another place."
            )
        before = None if latest is None else ScoredColumns(self._folder(latest), len(self.ids)).columns()
        columns = ScoredColumns(self._folder(epoch), len(self.ids))
        remaining = ranks.on_rank_zero(columns.remaining)
        self._broadcast_buffers()
        ranks.on_every_rank(lambda: self._write(columns, remaining, before, epoch))
        ranks.on_rank_zero(lambda: self._complete(columns, epoch, latest))

    def _folder(self, epoch: int) -> Path:
        return self.folder / f"pass-{epoch:04d}"

    def _latest(self) -> int | None:
        found = [int(path.parent.name.removeprefix("pass-")) for path in self.folder.glob(f"pass-*/{COMPLETE}")]
        return max(found, default=None)

    def _complete(self, columns: ScoredColumns, epoch: int, before: int | None) -> None:
        seconds = columns.seconds() / self.host.ranks.world_size
        if before is not None:
            seconds += float((self._folder(before) / COMPLETE).read_text())
        write_bytes(str(columns.folder / COMPLETE), repr(seconds).encode())
        if before is not None:
            shutil.rmtree(self._folder(before))

    @property
    def seconds(self) -> float:
        """Of all passes so far, as a clock on the wall shows them where the ranks are busy alike."""
        return float((self._folder(self._latest_or_refuse()) / COMPLETE).read_text())

    def recorded(self) -> Recorded:
        """What the passes wrote."""
        folder = self._folder(self._latest_or_refuse())
        columns = ScoredColumns(folder, len(self.ids)).columns()
        labels = columns.pop(LABELS, None)
        has_bias = self._layer is not None and self._layer.has_bias  # the rehearsal has found it
        return Recorded(columns=columns, labels=labels, has_bias=has_bias)

    def _latest_or_refuse(self) -> int:
        latest = self._latest()
        assert latest is not None, "a run of passes has made one"
        return latest

    def _broadcast_buffers(self) -> None:
        """Statistics of BatchNorm differ between ranks, of which the first one's are those that checkpoints hold."""
        if self.host.ranks.world_size > 1:
            for buffer in self.host.network.buffers():
                dist.broadcast(buffer, 0)

    # A pass ------------------------------------------------------------------------------------------------------

    def _write(
        self,
        columns: ScoredColumns,
        remaining: list[int],
        before: Mapping[str, NDArray[Any]] | None,
        epoch: int,
    ) -> None:
        rank, world_size = self.host.ranks.rank, self.host.ranks.world_size
        mine = remaining[rank::world_size]
        try:
            with self._samples.evaluating():
                parts = (rows for chunk in mine for rows in self._parts(columns, chunk))
                batches = self._samples.batches(self.ids[rows.start : rows.stop] for rows in parts)
                for done, chunk in enumerate(mine):
                    started = time.perf_counter()
                    for rows in self._parts(columns, chunk):
                        known = {name: column[rows.start : rows.stop] for name, column in (before or {}).items()}
                        known.pop(LABELS, None)
                        columns.write(rows.start, self._of(next(batches), known, epoch))
                    columns.done(chunk, time.perf_counter() - started)
                    self._tell(epoch, done + 1, len(mine))
        finally:
            columns.close()

    def _parts(self, columns: ScoredColumns, chunk: int) -> list[range]:
        """The rows of a chunk in batches."""
        rows = columns.rows_of(chunk)
        return [rows[at : at + self._batch] for at in range(0, len(rows), self._batch)]

    @torch.no_grad()
    def _of(self, batch: Any, before: Mapping[str, NDArray[Any]], epoch: int) -> dict[str, NDArray[Any]]:
        """What is written of a batch: the method's columns, and classes where each sample has one."""
        size = batch_size(batch)
        given = self.method.of_batch(self._scored(batch, size), before, epoch)
        parts = {name: _checked(self.method, name, column, size) for name, column in given.items()}
        with suppress(ValueError):  # several targets to a sample
            parts[LABELS] = class_labels(batch).cpu().numpy()
        return parts

    def _scored(self, batch: Any, size: int) -> ScoredBatch:
        task, network = self.host.task, self.host.network
        features, has_bias, outputs, loss = None, False, None, torch.zeros(())

        def forward(given: Any) -> Any:
            with self.host.autocast():
                return task.forward(network, given)

        if self.method.needs_surrogate:
            if self._layer is None:
                outputs = forward(batch)
            else:
                outputs, features = self._layer.watch(lambda: forward(batch))
                has_bias = self._layer.has_bias
            loss = task.loss(outputs, batch).float()
        microbatch = Microbatch(
            batch=batch,
            outputs=outputs,
            loss=loss,
            size=size,
            shifted=self._shifted,
            loss_function=task.loss_function,
            features=features,
            has_bias=has_bias,
        )
        return ScoredBatch(microbatch=microbatch, model=network, forward=forward, bos_id=self._bos_id)

    def _tell(self, epoch: int, done: int, of: int) -> None:
        """A line to standard error, about ten a pass, of what rank 0 does."""
        if self.host.settings.progress_bar and self.host.ranks.rank == 0 and done % max(1, of // 10) == 0:
            print(f"{self._label}pass after epoch {epoch}: {done} of {of} parts", file=sys.stderr)

    # Before training ---------------------------------------------------------------------------------------------

    def rehearse(self) -> None:
        """Ask the method about two samples and the untrained network, lest it refuse them when all is trained.

        Raises:
            ConfigError: what it says.
        """
        before: dict[str, NDArray[Any]] = {}
        try:
            with self._samples.evaluating():
                batch = next(self._samples.batches([self.ids[:2]]))
                for epoch in range(1, self.host.epochs + 1 if self.method.passes_every_epoch else 2):
                    before = self._of(batch, before, epoch)
                    before.pop(LABELS, None)
            if self.method.passes_every_epoch:
                self.method.score(Recorded(columns=before), keep=1, seed=0)
        except ValueError as error:
            raise ConfigError(f"method: {error}") from error


def _checked(method: StaticMethod, name: str, column: Tensor, size: int) -> NDArray[np.float32]:
    if column.dtype != torch.float32 or len(column) != size:
        raise ValueError(
            f"{type(method).__name__} writes {name!r} of shape {tuple(column.shape)} and dtype {column.dtype} of a "
            f"batch of {size} samples; let of_batch give float32, a row for each."
        )
    return column.cpu().numpy()
