"""All that a run folder tells, with the dataset that it trained on where that can be opened."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.export.classes import class_rows
from ted_stream.export.dataset_files import DatasetFolder, open_dataset
from ted_stream.export.history import Decisions, EpochChange, epoch_changes, read_decisions
from ted_stream.export.origins import Origins, find_origins
from ted_stream.export.places import place_columns
from ted_stream.export.run_files import pruned_epochs, read_run, read_running_scores
from ted_stream.showing import html_table
from ted_stream.skip_list import DatasetLayout, SkipList
from ted_stream.skip_list.difference import first_difference, match_streams

__all__ = ["RunFindings", "highest", "read_findings"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFindings:
    """What :func:`read_findings` found of a run of N samples.

    Attributes:
        folder: of the run.
        run: what ``run.json`` holds.
        epochs: that have begun.
        decisions: of the pruned ones; ``None`` where there are no lists.
        scores: (N,) float32 running scores, NaN where never measured; ``None`` where there are none.
        scored_after: the epoch after which they were.
        data: what was trained on; ``None`` where it is not known, or another dataset.
        origins: of its samples; ``None`` where they are not known.
        notes: what could not be told, and why.
    """

    folder: str
    run: Mapping[str, Any] = field(repr=False)
    epochs: list[EpochChange] = field(repr=False)
    decisions: Decisions | None = field(repr=False)
    scores: NDArray[np.float32] | None = field(repr=False)
    scored_after: int | None
    data: DatasetFolder | None
    origins: Origins | None = field(repr=False)
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        run, planned = self.run, self.run["planned_save_ratio"]
        state = "finished" if run.get("finished") else "not finished"
        facts = {
            "run": f"{run['run']}, {state}: {self.epochs_done} of {run['max_epochs']} epochs",
            "method": run["settings"],
            "samples": run["samples"],
            "save ratio": f"{run['save_ratio']:.4f} so far",
            "planned": "as it goes" if planned is None else f"{planned:.4f}",
            "notes": " ".join(self.notes) or None,
        }
        rows = [
            (str(row.epoch), row.kept, f"{row.real:.1%}", row.returned, row.newly_pruned, row.forwarded or None)
            for row in self.epochs
        ]
        return html_table(
            self.folder, facts, ("epoch", "kept", "of all", "returned", "newly pruned", "forwarded"), rows
        )

    @property
    def is_pruned(self) -> bool:
        """Whether any epoch left something out."""
        return bool(pruned_epochs(self.run))

    @property
    def epochs_done(self) -> int:
        """Epochs that have ended."""
        return sum(bool(epoch.forwarded) for epoch in self.epochs)

    def classes(self) -> list[dict[str, Any]]:
        """Of each class what :func:`~ted_stream.export.classes.class_rows` tells; empty where they are not known."""
        found = self.decisions
        if found is None or found.labels is None:
            return []
        return class_rows(found.labels, found.kept_of_classes, self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """By the classes' numbers; empty where they are not known."""
        return () if self.data is None else self.data.class_names

    def extremes(self, number: int) -> dict[str, NDArray[np.int64]]:
        """Ids of the samples with the ``highest`` and ``lowest`` scores, and of the most ``contested``.

        Contested are those that switched between kept and pruned most often. Each is empty where nothing is known of
        it; ties go by the ids.
        """
        none = np.empty(0, np.int64)
        ids = {"highest": none, "lowest": none, "contested": none}
        if self.scores is not None:
            known = np.flatnonzero(~np.isnan(self.scores))
            values = self.scores[known]
            ids["highest"], ids["lowest"] = known[highest(values, number)], known[highest(-values, number)]
        if self.decisions is not None and self.decisions.switches.any():
            switches = self.decisions.switches
            ids["contested"] = (chosen := highest(switches, number))[switches[chosen] > 0]
        return ids

    def samples(self, ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        """What is known of samples, in their order.

        Returns:
            Of each ``sample_id``, ``stream``, ``shard``, ``position``, ``file`` and ``key`` (where it came from, see
            `write_origins`), ``label`` and ``class`` (its name), ``score``, ``kept`` (in the last pruned epoch),
            ``times_kept`` and ``switches``; ``None`` where it is not known.

        Raises:
            ValueError: the file of the origins is damaged.
        """
        found = self.decisions
        if found is None:
            return []
        columns = place_columns(found.last.layout, ids)
        keep = found.last.keep_mask()[ids]
        labels = [None] * len(ids) if found.labels is None else found.labels[ids].tolist()
        scores = [None] * len(ids) if self.scores is None else _or_none(self.scores[ids])
        rows = zip(*(column.to_pylist() for column in columns.values()), strict=True)
        origins = (Origins.unknown(found.last.layout) if self.origins is None else self.origins).of(ids)
        return [
            {**dict(zip(columns, row, strict=True)), "file": origin["file"], "key": origin["key"]}
            | {"label": label, "class": self._class_name(label), "score": score, "kept": bool(kept)}
            | {"times_kept": int(found.times_kept[sample]), "switches": int(found.switches[sample])}
            for row, origin, label, score, kept, sample in zip(
                rows, origins, labels, scores, keep, ids.tolist(), strict=True
            )
        ]

    def _class_name(self, label: int | None) -> str | None:
        return self.class_names[label] if label is not None and 0 <= label < len(self.class_names) else None


def read_findings(folder: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None) -> RunFindings:
    """Read a run folder: of a run that has finished, was killed, or is still at work.

    Args:
        folder: local path or URI.
        data: of the dataset that it trained on, for classes and names; without it there are none.

    Raises:
        FileNotFoundError: the folder is none of a run.
        ValueError: a file of the run is damaged.
    """
    run, notes = read_run(folder), []
    opened: list[DatasetFolder] = []

    def labels_of(skip_list: SkipList) -> NDArray[np.int64] | None:
        if data is None:
            return None
        try:
            found = _opened_as(data, skip_list.layout, notes)
            opened.append(found)
            return found.labels()
        except (OSError, ValueError) as error:
            notes.append(f"{'Classes' if opened else 'The dataset'} could not be read: {error}.")
            return None

    decisions = read_decisions(folder, run, labels_of)
    origins: Origins | None = None
    if opened and decisions is not None:
        try:
            origins, _ = find_origins(opened[0].path, decisions.last.layout)
        except (OSError, ValueError) as error:
            notes.append(f"Where its samples came from could not be read: {error}")
    scores: NDArray[np.float32] | None = None
    scored_after: int | None = None
    if decisions is not None:
        if decisions.missing:
            notes.append(f"The skip-lists of {len(decisions.missing)} epochs are gone: {_some(decisions.missing)}.")
        try:
            scores, scored_after = read_running_scores(folder, layout=decisions.last.layout)
        except FileNotFoundError:
            notes.append("The run keeps no scores: its method measures nothing, or no epoch has ended.")
    elif run["epochs"]:
        notes.append("No skip-list of the run is left, so that it is not known which samples were kept.")
    return RunFindings(
        folder=os.fspath(folder),
        run=run,
        epochs=epoch_changes(run),
        decisions=decisions,
        scores=scores,
        scored_after=scored_after,
        data=opened[0] if opened else None,
        origins=origins,
        notes=tuple(notes),
    )


def _opened_as(path: str | os.PathLike[str], layout: DatasetLayout, notes: list[str]) -> DatasetFolder:
    """A dataset, if it is the one of a run.

    Raises:
        OSError, ValueError: it cannot be opened, or is another.
    """
    found = open_dataset(path)
    order = match_streams(layout, found.layout)
    if order is None:
        difference = first_difference(layout, found.layout)
        raise ValueError(f"{os.fspath(path)} is another dataset than that of the run: {difference}")
    if layout.fingerprint != found.layout.fingerprint:
        notes.append(
            f"{os.fspath(path)} agrees with the run in names, sizes and sample counts of its shards; whether their "
            "content is the same is not known, for lack of hashes in the index."
        )
    return found


def highest(values: NDArray[Any], number: int) -> NDArray[np.int64]:
    """(min(number, n),) indices of the largest of n values, the largest first, and the first of equal ones first."""
    number = min(number, len(values))
    if not number:
        return np.empty(0, np.int64)
    least = np.partition(values, -number)[-number]
    above = np.flatnonzero(values > least)
    chosen = np.concatenate([above, np.flatnonzero(values == least)[: number - len(above)]])
    return chosen[np.argsort(-values[chosen].astype(np.float64), kind="stable")]


def _or_none(values: NDArray[np.float32]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _some(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown}, …" if len(numbers) > 5 else shown
