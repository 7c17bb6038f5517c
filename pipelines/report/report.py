"""One or several runs as one HTML file, which needs nothing else: no network, no script."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ted_stream.export.findings import RunFindings
from ted_stream.files import exists, join, read_bytes, write_bytes
from ted_stream.showing import printable

from ..training.metrics_record import LABELS
from .charts import charts_of_run, charts_of_runs, thinned
from .drawing import COLOURS, Chart
from .gathering import ReportedRun, gather
from .previews import SampleReader

__all__ = ["Report", "write_report"]

MOST_RUNS, MOST_SAMPLES = len(COLOURS), 24
_MOST_CLASSES = 100  # rows of a table
_DARK = ("#7aa2ff", "#fbbf24", "#34d399", "#f472b6", "#b197fc", "#22d3ee", "#a3e635", "#ff8a80")
_WARNINGS = {
    "frozen": "the selection is frozen: hardly any sample returns",
    "class": "a class is nearly gone from what is trained on",
    "alike": "all scores were the same, so that the choice was by chance",
    "non_finite": "many measurements were infinite or NaN",
    "diverged": "nothing finite was measured any more: the run diverged",
}
_GROUPS = {"highest": "Highest scores", "lowest": "Lowest scores", "contested": "Most contested"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`write_report` wrote.

    Attributes:
        path: of the page.
        size: in bytes.
        pngs: paths of its charts, if they were asked for.
        notes: what could not be told, and why, as the page has it too.
    """

    path: str
    size: int
    pngs: tuple[str, ...]
    notes: tuple[str, ...]


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    *,
    data: str | None = None,
    samples: int = 12,
    pngs: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Report:
    """Write a report of runs: finished, killed, or still at work; of Composer, Hugging Face's Trainer or a loop.

    Args:
        runs: folders, local or URIs, at most 8; also of runs of ``ted-stream train`` on all data, to compare with.
        out: path or URI of the page.
        data: of the dataset that they trained on; by default that which a run's config names.
        samples: of each sort to show, at most 24.
        pngs: folder or URI for the charts as files; by default there are none.
        overwrite: replace a page that is there.

    Raises:
        FileExistsError: there is a page already.
        FileNotFoundError: a folder is none of a run.
        ValueError: an argument is out of its bounds, or a file of a run is damaged.
    """
    folders = [os.fspath(run) for run in runs]
    if not 1 <= len(folders) <= MOST_RUNS:
        raise ValueError(f"{len(folders)} runs are given, but a report shows 1 to {MOST_RUNS}; write several.")
    if not 0 <= samples <= MOST_SAMPLES:
        raise ValueError(f"samples is {samples}, but must be 0 to {MOST_SAMPLES}: so many of each sort are shown.")
    path = os.fspath(out)
    if not overwrite and exists(path):
        raise FileExistsError(f"{path} exists; name another file, or pass overwrite=True (--overwrite).")
    if exists(path) and not read_bytes(path).startswith(b"<!doctype html>"):
        raise FileExistsError(f"{path} is no page, so it is not replaced; name another file.")
    gathered = [gather(folder, name=name, data=data) for folder, name in zip(folders, _names(folders), strict=True)]
    common, own = charts_of_runs(gathered), [charts_of_run(run, at) for at, run in enumerate(gathered)]
    metrics = _metric_names(gathered)
    shown = [_shown(run, charts, samples, metrics) for run, charts in zip(gathered, own, strict=True)]
    page = (
        _template()
        .render(
            title=f"Pruning report: {gathered[0].name}" if len(gathered) == 1 else "Pruning report",
            made=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            version=version("ted-stream"),
            light=COLOURS,
            dark=_DARK,
            metrics=metrics,
            timed=any(run.result for run in gathered),
            common=_drawn(common),
            runs=shown,
        )
        .encode()
    )
    write_bytes(path, page)
    files = []
    for chart in [] if pngs is None else [*common, *(chart for charts in own for chart in charts)]:
        assert pngs is not None, "there are charts to write"
        files.append(join(pngs, f"{chart.name}.png"))
        write_bytes(files[-1], chart.png())
    notes = tuple(note for run in shown for note in run["notes"])
    return Report(path=path, size=len(page), pngs=tuple(files), notes=notes)


def _template() -> Any:
    loader = PackageLoader("ted_stream.pipelines.report", "")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")


def _names(folders: Sequence[str]) -> list[str]:
    """As short as they can be told apart by: the last part of each path, or the whole."""
    names = [PurePath(folder.rstrip("/")).name or folder for folder in folders]
    return [name if names.count(name) == 1 else folder for name, folder in zip(names, folders, strict=True)]


def _drawn(charts: Sequence[Chart]) -> list[dict[str, str]]:
    return [{"name": chart.name, "title": chart.title, "told": chart.told, "svg": chart.svg()} for chart in charts]


def _metric_names(runs: Sequence[ReportedRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in _last_metrics(run)))


def _last_metrics(run: ReportedRun) -> dict[str, float]:
    """Of the run's result; while there is none, the last that was recorded."""
    given: Mapping[str, float] = run.result.get("metrics", {})
    return {LABELS.get(name, name): value for name, value in given.items()} or {
        curve.name: curve.values[-1] for curve in run.curves
    }


def _shown(run: ReportedRun, charts: Sequence[Chart], samples: int, names: Sequence[str]) -> dict[str, Any]:
    """A run as words, for the page."""
    metrics, found = _last_metrics(run), run.found
    forwarded = sum(epoch.forwarded for epoch in run.epochs) or run.result.get("forwarded")
    classes = [] if found is None else found.classes()
    groups, notes = ([], []) if found is None else _groups(found, samples)
    rows, class_rows = thinned(run.epochs), thinned(sorted(classes, key=lambda row: row["share"]), _MOST_CLASSES)
    return {
        "name": run.name,
        "folder": run.folder,
        "method": run.method,
        "state": run.state,
        "metrics": {name: _metric(name, metrics.get(name)) for name in names},
        "samples": _count(run.samples),
        "forwarded": _count(forwarded),
        "planned_save_ratio": "as it goes" if run.planned_save_ratio is None else f"{run.planned_save_ratio:.4f}",
        "save_ratio": f"{run.save_ratio:.4f}",
        "seconds": f"{run.result['seconds']:,.1f}" if run.result else "",
        "warnings": _warnings(run, classes),
        "notes": [*run.notes, *notes],
        "charts": _drawn(charts),
        "groups": groups,
        "pruned_epochs": len(found.decisions.epochs) if found is not None and found.decisions is not None else 0,
        "epochs": [_epoch_row(row) for row in rows],
        "epochs_left_out": len(run.epochs) - len(rows),
        "last_pruned": found.decisions.epochs[-1] if found is not None and found.decisions is not None else None,
        "classes": [_class_row(row) for row in class_rows],
        "classes_left_out": len(classes) - len(class_rows),
    }


def _warnings(run: ReportedRun, classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the run warned of itself, and classes that are nearly gone."""
    said = []
    for record in [] if run.found is None else run.found.run["epochs"]:
        said += [
            f"From epoch {record['epoch']} on: {_WARNINGS.get(kind, kind)}." for kind in record.get("warnings", ())
        ]
    for row in sorted(classes, key=lambda row: row["least_share"]):
        if row["scarce"]:
            said.append(
                f"Class {_class_name(row)} nearly vanishes: {len(row['scarce'])} of the pruned epochs kept less than a "
                f"tenth of what its size would give it; epoch {row['least_epoch']} kept {row['least_share']:.1%} of "
                f"its {row['samples']:,} samples."
            )
    more = len(said) - 10
    return said if more <= 0 else [*said[:10], f"… and {more} more."]


def _groups(found: RunFindings, number: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The samples to show, and why some cannot be."""
    groups, notes = [], []
    reader = None if found.data is None else SampleReader(found.data)
    told = {}
    if found.scores is None:
        told["contested"] = "The run keeps no scores; of a method that draws by chance, these are so by chance too."
    for which, ids in found.extremes(number).items():
        samples = []
        for sample in found.samples(ids):
            preview: dict[str, Any] = {"image": None, "is_small": False, "text": ""}
            if reader is not None:
                try:
                    preview = vars(reader.preview(sample["sample_id"]))
                except ValueError as error:
                    notes.append(f"Samples are named, not shown: {error}.")
                    reader = None  # what fails once would fail, or wait, for each
            samples.append(preview | _sample(sample))
        if samples:
            groups.append(
                {
                    "title": _GROUPS[which],
                    "told": told.get(which, ""),
                    "samples": samples,
                    "is_text": any(sample["text"] for sample in samples),
                    "switched": which == "contested",
                }
            )
    return groups, notes


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    label = sample["label"]
    place = [sample["shard"], str(sample["position"])]
    if sample["file"] is not None:
        place = [sample["file"]] if sample["key"] is None else [sample["file"], sample["key"]]
    elif sample["key"] is not None:  # which alone may be a mere number
        place = [sample["key"], *place]
    return {
        "id": sample["sample_id"],
        "class_name": printable(sample["class"] or "") or ("" if label is None else f"class {label}"),
        "score": "" if sample["score"] is None else f"{sample['score']:.4g}",
        "times_kept": sample["times_kept"],
        "switches": sample["switches"],
        "place": printable(", ".join(place)),
    }


def _epoch_row(row: Any) -> list[str]:
    return [
        str(row.epoch),
        f"{row.planned:.2%}",
        f"{row.kept:,}",
        f"{row.real:.2%}",
        f"{row.returned:,}",
        _count(row.newly_pruned),
        _share(row.overlap),
        _share(row.expected_overlap),
        f"{row.forwarded:,}" if row.forwarded else "",
        "" if row.save_ratio is None else f"{row.save_ratio:.4f}",
    ]


def _class_row(row: Mapping[str, Any]) -> list[str]:
    return [
        _class_name(row),
        f"{row['samples']:,}",
        f"{row['kept']:,}",
        f"{row['share']:.1%}",
        f"{row['least_share']:.1%}",
        str(row["least_epoch"]),
    ]


def _class_name(row: Mapping[str, Any]) -> str:
    return str(row["label"]) if row["name"] is None else printable(row["name"])


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2%}" if "acc" in name else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
