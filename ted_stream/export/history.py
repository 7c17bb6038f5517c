"""What a run decided, epoch by epoch and sample by sample, from what lies in its folder."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.export.classes import count_kept
from ted_stream.export.run_files import pruned_epochs
from ted_stream.files import join
from ted_stream.skip_list import SkipList, read_skip_list

__all__ = ["Decisions", "EpochChange", "epoch_changes", "read_decisions"]

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EpochChange:
    """What an epoch kept, beside the one before.

    Attributes:
        epoch: 0-based.
        planned: the share of the samples that was to be kept.
        kept: samples that were.
        real: their share of all.
        returned: of them, those that the epoch before had pruned.
        newly_pruned: samples that the epoch before had kept; ``None`` where that one is not known.
        overlap: share of the kept samples that the epoch before kept too; ``None`` likewise, and in the first epoch.
        expected_overlap: what it would be on average of a uniform draw.
        forwarded: samples that were trained on; 0 while the epoch has not ended.
        save_ratio: 1 - forwarded / (samples · epochs) over the epochs so far; ``None`` while it has not ended.
        score_quantiles: by probability, as text, of the scores that it was chosen by; empty where it had none, or an
            earlier version kept none.
    """

    epoch: int
    planned: float
    kept: int
    real: float
    returned: int
    newly_pruned: int | None
    overlap: float | None
    expected_overlap: float | None
    forwarded: int
    save_ratio: float | None
    score_quantiles: Mapping[str, float]


def epoch_changes(run: Mapping[str, Any]) -> list[EpochChange]:
    """A row per epoch that has begun, of what ``run.json`` holds."""
    samples, rows = run["samples"], []
    kept_of = {record["epoch"]: record["kept"] for record in run["epochs"]}
    forwarded = ended = 0
    for record in run["epochs"]:
        epoch, kept, returned = record["epoch"], record["kept"], record["returning"]
        before = kept_of.get(epoch - 1, None if epoch else samples)
        is_second = epoch > 0 and before is not None
        done = record.get("forwarded", 0)
        forwarded, ended = forwarded + done, ended + bool(done)
        rows.append(
            EpochChange(
                epoch=epoch,
                planned=record["keep_ratio"],
                kept=kept,
                real=kept / samples,
                returned=returned,
                newly_pruned=None if before is None else before - (kept - returned),
                overlap=(kept - returned) / kept if is_second and kept else None,
                expected_overlap=before / samples if is_second else None,
                forwarded=done,
                save_ratio=1 - forwarded / (samples * ended) if done else None,
                score_quantiles=record.get("score_quantiles", {}),
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """What the pruned epochs decided on each of N samples.

    Attributes:
        last: the list of the last pruned epoch; of the last epoch where none was pruned.
        epochs: that were pruned, and whose lists are there.
        missing: that were pruned, and whose lists are gone.
        times_kept: (N,) int32, in how many of ``epochs``.
        switches: (N,) int32, how often a sample that was kept was pruned in the next of ``epochs``, or the reverse.
        labels: (N,) int64 classes, where they are known.
        kept_of_classes: epoch and (C,) kept samples of every class, of each of ``epochs``; empty without labels.
    """

    last: SkipList = field(repr=False)
    epochs: tuple[int, ...]
    missing: tuple[int, ...]
    times_kept: NDArray[np.int32] = field(repr=False)
    switches: NDArray[np.int32] = field(repr=False)
    labels: Labels | None = field(repr=False)
    kept_of_classes: list[tuple[int, NDArray[np.int64]]] = field(repr=False)


def read_decisions(
    folder: str | os.PathLike[str],
    run: Mapping[str, Any],
    labels_of: Callable[[SkipList], Labels | None] = lambda _: None,
) -> Decisions | None:
    """Read the lists of a run, one at a time: some 11 bytes a sample, however many epochs there are.

    Args:
        folder: of the run.
        run: what its ``run.json`` holds.
        labels_of: gives the classes of the samples of a list, by their ids; called once.

    Returns:
        ``None`` where no epoch has begun, or no list is left.

    Raises:
        SkipListError: a list is damaged, or another than it was.
    """
    records = pruned_epochs(run) or run["epochs"][-1:]
    last: SkipList | None = None
    before: NDArray[np.bool_] | None = None
    labels: Labels | None = None
    times_kept = switches = np.empty(0, np.int32)
    epochs, missing, of_classes = [], [], []
    for record in records:
        try:
            skip_list = read_skip_list(join(folder, record["skip_list"]), digest=record["digest"])
        except FileNotFoundError:
            missing.append(record["epoch"])
            continue
        keep = skip_list.keep_mask()
        if last is None:
            labels = labels_of(skip_list)
            times_kept, switches = np.zeros(len(keep), np.int32), np.zeros(len(keep), np.int32)
        times_kept += keep
        if before is not None:
            switches += keep != before
        if labels is not None:
            of_classes.append((record["epoch"], count_kept(labels, keep)))
        epochs.append(record["epoch"])
        last, before = skip_list, keep
    if last is None:
        return None
    return Decisions(
        last=last,
        epochs=tuple(epochs),
        missing=tuple(missing),
        times_kept=times_kept,
        switches=switches,
        labels=labels,
        kept_of_classes=of_classes,
    )
