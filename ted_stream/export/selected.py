"""The samples of a run that a selection means, from what lies in the run's folder."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.export.run_files import pruned_epochs, read_run, read_running_scores
from ted_stream.export.selection import Selection
from ted_stream.files import join
from ted_stream.skip_list import DatasetLayout, SkipList, read_skip_list

__all__ = ["Progress", "Selected", "Written", "select"]

Progress = Callable[[str, int, int], None]
"""Is told the stage, how much of it is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written of a selection.

    Attributes:
        path: of the file or dataset.
        to: its format.
        selection: what was asked for.
        epoch: 0-based, whose skip-list decided; ``None`` where several, or scores, did.
        kept: samples in it.
        samples: of the dataset that they come from.
        finished: whether the run has ended.
        notes: what is to be known of it, a sentence each.
    """

    path: str
    to: str
    selection: Selection
    epoch: int | None
    kept: int
    samples: int
    finished: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selected:
    """Samples of a run and what is known of all its samples, by global id; N samples, K of them chosen.

    Attributes:
        layout: of the dataset.
        run: its name.
        method: name of the pruning method.
        settings: the method's repr.
        finished: whether the run has ended.
        selection: what was asked for.
        epoch: whose skip-list decided; ``None`` where several, or scores, did.
        skip_list_digest: of that list.
        epochs: how many have begun.
        keep: (N,) bool, the chosen; read-only.
        scores: (N,) float32 running scores, NaN where never measured; ``None`` where the run has none.
        scored_after: the epoch after which they were; ``None`` where there are none.
        times_kept: (N,) int32, in how many of the epochs a sample was kept; ``None`` where a list is gone or they were
            not counted.
        weights: (K,) float32, what the chosen weigh in the loss of that epoch, by ascending id; ``None`` where all
            weigh alike, or it is not one epoch that decides.
    """

    layout: DatasetLayout = field(repr=False)
    run: str
    method: str
    settings: str
    finished: bool
    selection: Selection
    epoch: int | None
    skip_list_digest: str | None
    epochs: int
    keep: NDArray[np.bool_] = field(repr=False)
    scores: NDArray[np.float32] | None = field(default=None, repr=False)
    scored_after: int | None = None
    times_kept: NDArray[np.int32] | None = field(default=None, repr=False)
    weights: NDArray[np.float32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.keep.flags.writeable = False

    @property
    def num_samples(self) -> int:
        """N."""
        return self.layout.num_samples

    @property
    def num_kept(self) -> int:
        """K."""
        return int(np.count_nonzero(self.keep))

    @property
    def kept_per_shard(self) -> NDArray[np.int64]:
        """Chosen samples of each shard, in layout order: int64, shape (num_shards,)."""
        return np.add.reduceat(self.keep, self.layout.shard_offsets, dtype=np.int64)

    def kept_ids(self) -> NDArray[np.int64]:
        """Global ids of the chosen, ascending: int64, shape (K,)."""
        return np.flatnonzero(self.keep)


def select(
    run: str | os.PathLike[str],
    selection: Selection | None = None,
    *,
    count: bool = True,
    progress: Progress = lambda *_: None,
) -> Selected:
    """The samples that a selection means, of a run that has finished, was killed, or is still at work.

    Memory is that of the result, 10 bytes a sample, and of one skip-list. The scores are those after the last epoch
    that has ended, whichever epoch is meant.

    Args:
        run: its folder, a local path or a URI.
        selection: which samples; by default those that the last pruned epoch kept.
        count: in how many epochs each was kept, which reads all skip-lists.
        progress: of the stage ``lists``.

    Raises:
        FileNotFoundError: if the folder is none of a run, or a file of it is missing.
        ValueError: if the run has not pruned yet, has no such epoch or scores, nothing is left, or a file is damaged.
    """
    folder, selection = os.fspath(run), selection or Selection()
    held = read_run(folder)
    record, records = _record(folder, held, selection), held["epochs"]
    skip_list = read_skip_list(join(folder, record["skip_list"]), digest=record["digest"])
    layout = skip_list.layout
    scores, scored_after = _scores(folder, layout)
    times = None
    if count or selection.min_epochs is not None:
        try:
            times = _times_kept(folder, records, skip_list, progress)
        except FileNotFoundError:
            if selection.min_epochs is not None:
                raise
    keep = _chosen(folder, selection, skip_list, scores, times, len(records))
    decided = selection.of_one_epoch
    return Selected(
        layout=layout,
        run=held["run"],
        method=held["method"],
        settings=held["settings"],
        finished=bool(held.get("finished")),
        selection=selection,
        epoch=record["epoch"] if decided else None,
        skip_list_digest=skip_list.digest if decided else None,
        epochs=len(records),
        keep=keep,
        scores=scores,
        scored_after=scored_after,
        times_kept=times,
        weights=skip_list.weights if decided else None,
    )


def _record(folder: str, run: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """The record of the epoch that decides; where several or scores do, of the last one."""
    records = run["epochs"]
    if selection.epoch is not None:
        for record in records:
            if record["epoch"] == selection.epoch:
                return record
        known = [record["epoch"] for record in records]
        told = f"{known[0]} to {known[-1]}" if known else "none yet"
        raise ValueError(f"epoch is {selection.epoch}, but {folder} has the epochs {told}.")
    found = pruned_epochs(run) if selection.of_one_epoch else records
    if not found:
        raise ValueError(
            f"{folder} has pruned in none of its {len(records)} epochs so far, so that there is nothing to list but "
            "the whole dataset; name an epoch if you want that."
        )
    return found[-1]


def _scores(folder: str, layout: DatasetLayout) -> tuple[NDArray[np.float32], int] | tuple[None, None]:
    try:
        return read_running_scores(folder, layout=layout)
    except FileNotFoundError:
        return None, None


def _times_kept(folder: str, records: list[dict[str, Any]], known: SkipList, progress: Progress) -> NDArray[np.int32]:
    """(N,) in how many epochs each sample was kept; ``known`` is one of the lists."""
    times = np.zeros(known.num_samples, np.int32)
    progress("lists", 0, len(records))
    for number, record in enumerate(records, 1):
        found = known
        if record["digest"] != known.digest:
            found = read_skip_list(join(folder, record["skip_list"]), digest=record["digest"])
            if found.layout.shape_keys != known.layout.shape_keys:  # the streams are in another order
                found = found.aligned_to(known.layout)
        times += found.keep_mask()
        progress("lists", number, len(records))
    return times


def _chosen(
    folder: str,
    selection: Selection,
    skip_list: SkipList,
    scores: NDArray[np.float32] | None,
    times: NDArray[np.int32] | None,
    epochs: int,
) -> NDArray[np.bool_]:
    """(N,) bool."""
    if selection.of_one_epoch:
        return skip_list.keep_mask()
    if selection.min_epochs is not None:
        assert times is not None, "they were counted"
        if selection.min_epochs > epochs:
            raise ValueError(f"min_epochs is {selection.min_epochs}, but {folder} has {epochs} epochs so far.")
        keep, known = times >= selection.min_epochs, f"the most that any was kept in is {times.max()} of {epochs}"
    else:
        if scores is None:
            raise ValueError(
                f"{folder} has no running scores, by which samples were to be selected: its method measures nothing, "
                "or no epoch has ended. Select by epoch or min_epochs."
            )
        keep = _by_threshold(selection, scores) if selection.ratio is None else _by_ratio(selection, scores, folder)
        known = f"{np.count_nonzero(~np.isnan(scores))} of {len(scores)} samples have scores"
        if not np.isnan(scores).all():
            known += f", from {np.nanmin(scores):g} to {np.nanmax(scores):g}"
    if not keep.any():
        raise ValueError(f"{folder} has no samples {selection}: {known}.")
    return keep


def _by_threshold(selection: Selection, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    assert selection.threshold is not None, "it is what is given"
    with np.errstate(invalid="ignore"):  # NaN is neither
        return scores <= selection.threshold if selection.lowest else scores >= selection.threshold


def _by_ratio(selection: Selection, scores: NDArray[np.float32], folder: str) -> NDArray[np.bool_]:
    assert selection.ratio is not None, "it is what is given"
    number = max(1, round(selection.ratio * len(scores)))
    known = np.count_nonzero(~np.isnan(scores))
    if known < number:
        raise ValueError(
            f"ratio is {selection.ratio:g}, {number} of {len(scores)} samples, but {folder} has scores of {known}; "
            f"give at most {known / len(scores):g}."
        )
    values = scores if selection.lowest else -scores
    last = np.partition(values, number - 1)[number - 1]  # NaN comes last
    keep = values < last
    keep[np.flatnonzero(values == last)[: number - np.count_nonzero(keep)]] = True
    return keep
