"""The scores of all samples, sharded over ranks by ranges of sample ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ted_stream.pruning.communicator import Communicator, SingleProcess
from ted_stream.pruning.predictions import IGNORE_INDEX
from ted_stream.pruning.running import ExponentialMean, Running, RunningMean

__all__ = ["Measurements", "ScoreStore", "ScoreUpdate", "group_means"]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What one rank measured in (a part of) one epoch.

    Args:
        ids: (m,) int64 sample ids; an id may repeat, on this rank and on others.
        importance: (m,) importance I(z) of those samples, float32 or float64, as it was measured.
        steps: (m,) int64, the training step within the epoch that measured each, the same count on every rank.
        labels: (m,) int64, the class of each, -100 where it has none; ``None`` where they were not asked for.
    """

    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    importance: NDArray[np.floating] = field(default_factory=lambda: np.empty(0, np.float32))
    steps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def all_labels(self) -> NDArray[np.int64]:
        """(m,) int64, the labels, -100 for all where they were not asked for."""
        return np.full(len(self), IGNORE_INDEX, np.int64) if self.labels is None else self.labels

    @classmethod
    def concatenate(cls, parts: "list[Measurements]") -> "Measurements":
        """The parts one after the other."""
        labelled = any(part.labels is not None for part in parts)
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            importance=np.concatenate([part.importance for part in parts]),
            steps=np.concatenate([part.steps for part in parts]),
            labels=np.concatenate([part.all_labels for part in parts]) if labelled else None,
        )


def group_means(
    values: NDArray[np.float64], groups: NDArray[np.int64], communicator: Communicator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The mean of each group of values over all ranks, the same bits whichever rank holds what.

    The sums are exact integers, because sums of floats depend on the order of their terms. A group's values are rounded
    to multiples of 2^-e; if over all ranks they are fewer than 2^b and below 2^m in magnitude, e = 62 - b - m: their
    sum stays below 2^62 units, and rounding moves none by more than 2^(b - 62) of the largest.

    Args:
        values: (m,) finite float64, of this rank.
        groups: (m,) int64, the group of each, from 0.
        communicator: the ranks.

    Returns:
        The means, (groups,) float64, 0 for a group without values; and the counts, (groups,) int64.
    """
    largest = np.zeros(groups.max() + 1 if len(groups) else 0)
    np.maximum.at(largest, groups, np.abs(values))
    of_ranks = communicator.all_gather(largest)
    longest = max(len(part) for part in of_ranks)
    largest = np.max([np.pad(part, (0, longest - len(part))) for part in of_ranks], axis=0)
    counts = communicator.all_reduce_sum(np.bincount(groups, minlength=longest))
    e = 62 - np.frexp(counts)[1] - np.frexp(largest)[1]  # frexp: the exponent of the next power of two
    sums = np.zeros(longest, np.int64)
    np.add.at(sums, groups, np.rint(np.ldexp(values, e[groups])).astype(np.int64))
    sums = communicator.all_reduce_sum(sums)
    return np.ldexp(sums / np.maximum(counts, 1), -e), counts


@dataclass(frozen=True, kw_only=True)
class ScoreUpdate:
    """Counts of one fold, over all ranks.

    Args:
        measured: measurements handed in, repeats included: the samples that were forwarded.
        non_finite: measurements dropped because they were infinite or NaN.
        updated: different samples whose score changed.
    """

    measured: int
    non_finite: int
    updated: int


class ScoreStore:
    """The columns of N samples, N / W of them on each of W ranks: rank r owns the ids with ⌊id·W / N⌋ = r.

    All methods are collective.

    Args:
        num_samples: N.
        running: what is remembered of every sample.
        labelled: remember every sample's class too.
        communicator: the ranks; this process alone by default.

    Attributes:
        first_id: this rank's first sample id.
        columns: by name, (n,) float32 of the samples that this rank owns.
        pending: columns that a method's choice changes, from the end of the epoch on.
        labels: (n,) int32, their classes, -1 where none is known; ``None`` without ``labelled``.
    """

    def __init__(
        self,
        num_samples: int,
        running: Running | None = None,
        *,
        labelled: bool = False,
        communicator: Communicator | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}, but there must be at least one sample to score.")
        self.num_samples = num_samples
        self.running = running or ExponentialMean()
        self.communicator = communicator or SingleProcess()
        # ⌊id·W / N⌋ = r  ⇔  ⌈r·N / W⌉ ≤ id < ⌈(r + 1)·N / W⌉
        world_size = self.communicator.world_size
        self._bounds = np.array([-(-rank * num_samples // world_size) for rank in range(world_size + 1)], np.int64)
        self.first_id = int(self._bounds[self.communicator.rank])
        self._num_owned = int(self._bounds[self.communicator.rank + 1]) - self.first_id
        self.columns = {name: np.full(self._num_owned, np.nan, np.float32) for name in self.running.columns}
        self.pending: dict[str, NDArray[np.float32]] = {}
        self.labels = np.full(self._num_owned, -1, np.int32) if labelled else None
        self.running_mean = RunningMean()

    @property
    def scores(self) -> NDArray[np.float32]:
        """(n,) float32, the scores of the samples that this rank owns; NaN for those never measured."""
        return self.running.scores(self.columns)

    def update(self, measurements: Measurements, *, epoch: int = 0) -> ScoreUpdate:
        """Fold an epoch's measurements into the running scores.

        Non-finite measurements (an overflow under a gradient scaler) are dropped and counted. Several measurements
        of one sample count as their mean. The order in which ranks measured does not matter.

        Args:
            measurements: of this rank.
            epoch: that they were made in (0-based).

        Raises:
            ValueError: for an id outside [0, N); on every rank alike.
        """
        ids, steps = measurements.ids, measurements.steps
        importance = measurements.importance.astype(np.float64)
        self._refuse_other_ids(ids)
        with np.errstate(over="ignore"):
            finite = np.isfinite(importance.astype(np.float32))  # scores are float32
        counts = np.array([len(ids), (~finite).sum()], np.int64)
        measured, non_finite = self.communicator.all_reduce_sum(counts).tolist()
        if not finite.all():
            ids, importance, steps = ids[finite], importance[finite], steps[finite]
        if self.running.relative:
            importance = importance / self._mean_at_step(importance, steps)[steps]
        if self.running.window is not None:
            windows = steps // self.running.window
            means, _ = group_means(importance, windows, self.communicator)
            importance = importance - means[windows]
        updated = self._fold(*self._to_owners(ids, importance), epoch)
        updated = int(self.communicator.all_reduce_sum(np.array([updated], np.int64))[0])
        return ScoreUpdate(measured=measured, non_finite=non_finite, updated=updated)

    def label(self, measurements: Measurements) -> None:
        """Take over the classes that were seen, if they are remembered; collective, and again without effect.

        Raises:
            ValueError: for an id outside [0, N), or a sample of two classes; on every rank alike.
        """
        if self.labels is None:
            return
        self._refuse_other_ids(measurements.ids)
        labels = self._checked_labels(measurements.all_labels)
        ids, labels = self._to_owners(measurements.ids, labels)
        local = ids - self.first_id
        seen = np.full(len(self.labels), -1, np.int64)
        np.maximum.at(seen, local, labels)
        known = np.where(self.labels < 0, seen, self.labels).astype(np.int64)
        others = local[(labels >= 0) & (labels != known[local])]
        counts = self.communicator.all_reduce_sum(np.array([len(others)], np.int64))
        if counts[0]:
            raise ValueError(
                f"{counts[0]} samples had another class than before{self._examples(others + self.first_id)}, so they "
                "cannot be told apart by class. Labels must stay what they are from epoch to epoch: leave out what "
                "mixes or changes them, or choose a method that does not look at classes."
            )
        self.labels[:] = known

    def _checked_labels(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        wrong = labels[((labels < 0) & (labels != IGNORE_INDEX)) | (labels >= 1 << 31)]
        count = self.communicator.all_reduce_sum(np.array([len(wrong)], np.int64))[0]
        if count:
            raise ValueError(
                f"{count} class targets lie outside [0, 2^31){self._examples(wrong)}, but samples are told apart by "
                "classes that are numbered from 0 (-100: none). Number them so, or choose a method that does not look "
                "at classes."
            )
        return np.where(labels == IGNORE_INDEX, -1, labels)

    def _refuse_other_ids(self, ids: NDArray[np.int64]) -> None:
        outside = ids[(ids < 0) | (ids >= self.num_samples)]
        count = self.communicator.all_reduce_sum(np.array([len(outside)], np.int64))[0]
        if count:
            raise ValueError(
                f"{count} measured sample ids lie outside [0, {self.num_samples}){self._examples(outside)}: the ids "
                "come from another dataset than the scores. Train with the dataset that the run started with, or "
                "start a new run."
            )

    def _examples(self, ids: NDArray[np.int64]) -> str:
        return f", for example {ids[:3].tolist()} on rank {self.communicator.rank}" if len(ids) else ""

    def settle(self) -> None:
        """Take over what the epoch's choice changes; at its end, not collective."""
        for name, column in self.pending.items():
            self.columns[name][:] = column
        self.pending = {}

    def _mean_at_step(self, importance: NDArray[np.float64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """(steps,) float64, the running mean of the importance over all ranks as of every step."""
        means, counts = group_means(importance, steps, self.communicator)
        at_step = np.ones(len(means))
        for step in np.flatnonzero(counts):
            mean = self.running_mean.update(float(means[step]))
            at_step[step] = mean or 1.0  # all importances zero so far: relative to one they stay zero
        return at_step

    def _to_owners(self, ids: NDArray[np.int64], values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        world_size = self.communicator.world_size
        if world_size == 1:
            return ids, values
        # In the smallest integer, whose stable sort is a radix sort.
        owners = np.searchsorted(self._bounds[1:-1], ids, side="right").astype(np.min_scalar_type(world_size))
        order = np.argsort(owners, kind="stable")
        cuts = np.cumsum(np.bincount(owners, minlength=world_size))[:-1]
        received_ids = self.communicator.all_to_all(np.split(ids[order], cuts))
        received_values = self.communicator.all_to_all(np.split(values[order], cuts))
        return np.concatenate(received_ids), np.concatenate(received_values)

    def _fold(self, ids: NDArray[np.int64], importance: NDArray[np.float64], epoch: int) -> int:
        """Fold measurements of this rank's samples into their columns; how many different samples they are."""
        rows = ids - self.first_id
        repeated = np.bincount(rows, minlength=self._num_owned)[rows] > 1
        if repeated.any():
            of_repeats, means = _means_of_repeats(rows[repeated], importance[repeated])
            rows = np.concatenate([rows[~repeated], of_repeats])
            importance = np.concatenate([importance[~repeated], means])
        self.running.fold(self.columns, rows, importance, epoch)
        return len(rows)

    def num_unmeasured(self) -> int:
        """How many of the N samples were never measured."""
        return int(self.communicator.all_reduce_sum(np.array([np.isnan(self.scores).sum()], np.int64))[0])

    def gather(self) -> NDArray[np.float32]:
        """(N,) float32, all scores on every rank: 4 bytes per sample of the dataset."""
        return np.concatenate(self.communicator.all_gather(self.scores))

    def gather_on_rank_zero(self) -> NDArray[np.float32] | None:
        """(N,) float32, all scores on rank 0; ``None`` on the others."""
        parts = self.communicator.gather(self.scores)
        return None if parts is None else np.concatenate(parts)

    def state_dict(self, *, everywhere: bool = True) -> dict[str, Any]:
        """What is remembered of all samples, as tensors and numbers; independent of the world size.

        A column's floats are given as the int32 of their bits: NaN, the mark of a sample never measured, equals
        nothing, so that states could not be compared.

        Args:
            everywhere: all ranks hold the state, 4·N bytes a column; else rank 0 alone, and the others no columns.
        """
        gather = self.communicator.all_gather if everywhere else self.communicator.gather

        def whole(columns: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
            gathered = {name: gather(column) for name, column in columns.items()}
            return {
                name: torch.from_numpy(np.concatenate(parts).view(np.int32))
                for name, parts in gathered.items()
                if parts is not None
            }

        return {
            "columns": whole(self.columns),
            "pending": whole(self.pending),
            "labels": whole({} if self.labels is None else {"label": self.labels}),
            "running_mean": [self.running_mean.total, self.running_mean.weight],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's range of the columns.

        Raises:
            ValueError: if the state belongs to a dataset of another size, or has other columns.
        """
        mine = {*self.columns, *([] if self.labels is None else ["label"])}
        if state["columns"].keys() | state["labels"].keys() != mine:
            raise ValueError(
                f"The checkpoint holds the columns {sorted([*state['columns'], *state['labels']])}, but this method "
                f"keeps {sorted(mine)}. Resume with the method that the run started with, or start a new run."
            )

        def owned(columns: Mapping[str, torch.Tensor], dtype: type) -> dict[str, NDArray[Any]]:
            for bits in columns.values():
                if len(bits) != self.num_samples:
                    raise ValueError(
                        f"The checkpoint holds scores of {len(bits)} samples, but the training dataset has "
                        f"{self.num_samples}. Resume with the dataset that the run started with, or start a new run."
                    )
            mine = slice(self.first_id, self.first_id + self._num_owned)
            return {name: bits[mine].cpu().numpy().view(dtype).copy() for name, bits in columns.items()}

        self.columns = owned(state["columns"], np.float32)
        self.pending = owned(state["pending"], np.float32)
        if self.labels is not None:
            self.labels = owned(state["labels"], np.int32)["label"]
        self.running_mean.total, self.running_mean.weight = state["running_mean"]


def _means_of_repeats(
    rows: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The different rows, and the mean of the values of each."""
    order = np.lexsort((values, rows))  # by value, so that repeats are summed in an order of their own
    rows, values = rows[order], values[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    return rows[first], np.add.reduceat(values, first) / np.diff(first, append=len(rows))
