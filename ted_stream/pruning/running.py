"""What is remembered of every sample, sharded over ranks by ranges of sample ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ted_stream.pruning.communicator import Communicator, SingleProcess
from ted_stream.pruning.selection import kth_largest
from ted_stream.pruning.settings import check_flag, check_number

__all__ = ["ExponentialMean", "Measurements", "Running", "RunningMean", "ScoreStore", "ScoreUpdate", "group_means"]

Columns = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What one rank measured in (a part of) one epoch.

    Args:
        ids: (m,) int64 sample ids; an id may repeat, on this rank and on others.
        importance: (m,) float64 importance I(z) of those samples.
        steps: (m,) int64, the training step within the epoch that measured each, the same count on every rank.
    """

    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    importance: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    steps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concatenate(cls, parts: "list[Measurements]") -> "Measurements":
        """The parts one after the other."""
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            importance=np.concatenate([part.importance for part in parts]),
            steps=np.concatenate([part.steps for part in parts]),
        )


@dataclass
class RunningMean:
    """A bias-corrected exponential moving average of the mean importance per training step.

    Args:
        decay: weight of the past, per step.
        total: decayed sum of the means.
        weight: decayed sum of ones.
    """

    decay: float = 0.9
    total: float = 0.0
    weight: float = 0.0

    def update(self, mean: float) -> float:
        """Take in one step's mean and return the average including it."""
        self.total = self.decay * self.total + (1 - self.decay) * mean
        self.weight = self.decay * self.weight + (1 - self.decay)
        return self.total / self.weight


class Running(Protocol):
    """What a method remembers of every sample: named columns, float32, NaN before the first measurement.

    Attributes:
        columns: their names.
        relative: divide every measurement by the running mean of all measurements as of its training step, so that
            measurements of different epochs can be compared although the scale of gradients drifts.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """See the class."""
        ...

    @property
    def relative(self) -> bool:
        """See the class."""
        ...

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Take measurements of one epoch into the columns, in place.

        Args:
            columns: (n,) each, of the samples that this rank owns.
            rows: (m,) rows of the columns, all different.
            values: (m,) what was measured of them; the mean, where a sample was measured several times.
        """
        ...

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """(n,) the scores that the columns make; NaN for a sample that was never measured."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExponentialMean:
    """score ← α·score + (1 - α)·I, and the first measurement of a sample sets score = I (TED, eq. 19).

    A start at zero would rank samples by how often they were seen: pruned ones could never come back.

    Args:
        alpha: α in [0, 1), the weight of the past; 0 keeps the latest measurement.
        relative: see :class:`Running`.
    """

    alpha: float = 0.9
    relative: bool = False

    def __post_init__(self) -> None:
        fix = "it is the weight of the past in the running score, and 1 would ignore every measurement after the first."
        object.__setattr__(self, "alpha", check_number("alpha", self.alpha, "[0, 1)", fix=f"{fix} The paper uses 0.9."))
        check_flag("relative", self.relative, fix="it divides measurements by the mean importance of their time.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The score itself."""
        return ("score",)

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Equation 19."""
        old = columns["score"][rows]
        new = np.where(np.isnan(old), values, self.alpha * old.astype(np.float64) + (1 - self.alpha) * values)
        columns["score"][rows] = new.astype(np.float32)

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """The column."""
        return columns["score"]


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
        communicator: the ranks; this process alone by default.

    Attributes:
        first_id: this rank's first sample id.
        columns: by name, (n,) float32 of the samples that this rank owns.
    """

    def __init__(
        self, num_samples: int, running: Running | None = None, *, communicator: Communicator | None = None
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
        self.running_mean = RunningMean()

    @property
    def scores(self) -> NDArray[np.float32]:
        """(n,) float32, the scores of the samples that this rank owns; NaN for those never measured."""
        return self.running.scores(self.columns)

    def update(self, measurements: Measurements) -> ScoreUpdate:
        """Fold an epoch's measurements into the running scores.

        Non-finite measurements (an overflow under a gradient scaler) are dropped and counted. Several measurements
        of one sample count as their mean. The order in which ranks measured does not matter.

        Raises:
            ValueError: for an id outside [0, N); on every rank alike.
        """
        ids, importance = measurements.ids, measurements.importance
        outside = (ids < 0) | (ids >= self.num_samples)
        with np.errstate(over="ignore"):
            finite = np.isfinite(importance.astype(np.float32))  # scores are float32
        counts = np.array([len(ids), outside.sum(), (~finite).sum()], np.int64)
        measured, num_outside, non_finite = self.communicator.all_reduce_sum(counts).tolist()
        if num_outside:
            raise ValueError(
                f"{num_outside} measured sample ids lie outside [0, {self.num_samples}), for example "
                f"{ids[outside][:3].tolist()} on rank {self.communicator.rank}: the ids come from another dataset "
                "than the scores. Train with the dataset that the run started with, or start a new run."
            )
        steps = measurements.steps
        if not finite.all():
            ids, importance, steps = ids[finite], importance[finite], steps[finite]
        if self.running.relative:
            importance = importance / self._mean_at_step(importance, steps)[steps]
        if self.communicator.world_size > 1:
            ids, importance = self._to_owners(ids, importance)
        updated = self._fold(ids, importance)
        updated = int(self.communicator.all_reduce_sum(np.array([updated], np.int64))[0])
        return ScoreUpdate(measured=measured, non_finite=non_finite, updated=updated)

    def _mean_at_step(self, importance: NDArray[np.float64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """(steps,) float64, the running mean of the importance over all ranks as of every step."""
        means, counts = group_means(importance, steps, self.communicator)
        at_step = np.ones(len(means))
        for step in np.flatnonzero(counts):
            mean = self.running_mean.update(float(means[step]))
            at_step[step] = mean or 1.0  # all importances zero so far: relative to one they stay zero
        return at_step

    def _to_owners(
        self, ids: NDArray[np.int64], importance: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        world_size = self.communicator.world_size
        # In the smallest integer, whose stable sort is a radix sort.
        owners = np.searchsorted(self._bounds[1:-1], ids, side="right").astype(np.min_scalar_type(world_size))
        order = np.argsort(owners, kind="stable")
        cuts = np.cumsum(np.bincount(owners, minlength=world_size))[:-1]
        received_ids = self.communicator.all_to_all(np.split(ids[order], cuts))
        received_importance = self.communicator.all_to_all(np.split(importance[order], cuts))
        return np.concatenate(received_ids), np.concatenate(received_importance)

    def _fold(self, ids: NDArray[np.int64], importance: NDArray[np.float64]) -> int:
        """Fold measurements of this rank's samples into their columns; how many different samples they are."""
        local = ids - self.first_id
        repeated = np.bincount(local, minlength=self._num_owned)[local] > 1
        self.running.fold(self.columns, local[~repeated], importance[~repeated])
        once = len(local) - np.count_nonzero(repeated)
        if once == len(local):
            return once
        local, importance = local[repeated], importance[repeated]
        order = np.lexsort((importance, local))  # by importance, so that repeats are summed in an order of their own
        local, importance = local[order], importance[order]
        first = np.flatnonzero(np.diff(local, prepend=-1))
        means = np.add.reduceat(importance, first) / np.diff(first, append=len(local))
        self.running.fold(self.columns, local[first], means)
        return once + len(first)

    def num_unmeasured(self) -> int:
        """How many of the N samples were never measured."""
        return int(self.communicator.all_reduce_sum(np.array([np.isnan(self.scores).sum()], np.int64))[0])

    def quantiles(self, probabilities: tuple[float, ...]) -> dict[float, float]:
        """Exact quantiles (the ⌈p·m⌉-th smallest) of the m measured scores; empty when none was measured."""
        total = self.num_samples - self.num_unmeasured()
        if not total:
            return {}
        ranks = [min(total, max(1, total - int(np.ceil(p * total)) + 1)) for p in probabilities]
        return dict(zip(probabilities, kth_largest(self.scores, ranks, self.communicator), strict=True))

    def gather(self) -> NDArray[np.float32]:
        """(N,) float32, all scores on every rank: 4 bytes per sample of the dataset."""
        return np.concatenate(self.communicator.all_gather(self.scores))

    def gather_on_rank_zero(self) -> NDArray[np.float32] | None:
        """(N,) float32, all scores on rank 0; ``None`` on the others."""
        parts = self.communicator.gather(self.scores)
        return None if parts is None else np.concatenate(parts)

    def state_dict(self, *, everywhere: bool = True) -> dict[str, Any]:
        """The columns of all samples and the running mean, as tensors and numbers; independent of the world size.

        A column's floats are given as the int32 of their bits: NaN, the mark of a sample never measured, equals
        nothing, so that states could not be compared.

        Args:
            everywhere: all ranks hold the state, 4·N bytes a column; else rank 0 alone, and the others no columns.
        """
        columns = {}
        for name, column in self.columns.items():
            parts = self.communicator.all_gather(column) if everywhere else self.communicator.gather(column)
            if parts is not None:
                columns[name] = torch.from_numpy(np.concatenate(parts).view(np.int32))
        return {"columns": columns, "running_mean": [self.running_mean.total, self.running_mean.weight]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's range of the columns.

        Raises:
            ValueError: if the state belongs to a dataset of another size, or has other columns.
        """
        if state["columns"].keys() != self.columns.keys():
            raise ValueError(
                f"The checkpoint holds the columns {sorted(state['columns'])}, but this method keeps "
                f"{sorted(self.columns)}. Resume with the method that the run started with, or start a new run."
            )
        for name, bits in state["columns"].items():
            if len(bits) != self.num_samples:
                raise ValueError(
                    f"The checkpoint holds scores of {len(bits)} samples, but the training dataset has "
                    f"{self.num_samples}. Resume with the dataset that the run started with, or start a new run."
                )
            owned = bits[self.first_id : self.first_id + self._num_owned]
            self.columns[name] = owned.cpu().numpy().view(np.float32).copy()
        self.running_mean.total, self.running_mean.weight = state["running_mean"]
