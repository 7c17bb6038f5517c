"""The charts of a report. A run has the same colour in all of them; the numbers of points are bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ted_stream.showing import printable

from .drawing import COLOURS, MUTED, Chart, blank
from .gathering import ReportedRun

__all__ = ["MOST_POINTS", "charts_of_run", "charts_of_runs", "thinned"]

MOST_POINTS = 400  # of a line, and rows of a table
_MOST_BARS = 60
_MOST_CLASSES = 24
_MOST_LETTERS = 18  # of a class's name beside its bar

Runs = Sequence[ReportedRun]
Value = Callable[[Any], float | None]


def thinned(rows: Sequence[Any], most: int = MOST_POINTS) -> Sequence[Any]:
    """Every so many-th of rows and the last, at most ``most``."""
    if len(rows) <= most:
        return rows
    return [rows[at] for at in np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int)).tolist()]


def charts_of_runs(runs: Runs) -> list[Chart]:
    """What all runs have in common, in the order of a page."""
    charts = []
    if any(run.epochs for run in runs):
        charts += [
            Chart(
                name="keep-ratio",
                title="Keep ratio",
                told="Share of all samples that an epoch keeps. Dashed: planned.",
                draw=partial(_epochs, runs, lambda e: e.real, lambda e: e.planned, whole=True),
            ),
            Chart(
                name="save-ratio",
                title="Save ratio so far",
                told="1 - forwarded / (samples × epochs). Dashed: planned for the whole run.",
                draw=partial(_save_ratio, runs),
            ),
        ]
    points = Counter[str]()
    for curve in (curve for run in runs for curve in run.curves):
        points[curve.name] += len(curve.values)
    names = [name for name, count in points.items() if count > 1]  # one number is in the table, and no curve
    for at, name in enumerate(names):
        title = name[0].upper() + name[1:]
        charts.append(Chart(name=f"metric-{at}", title=title, draw=partial(_curve, runs, name, by_epoch=True)))
        if "acc" in name:
            told = "The same against samples forwarded, which is what training costs."
            draw = partial(_curve, runs, name, by_epoch=False)
            charts.append(Chart(name=f"metric-{at}-cost", title=f"{title} by cost", told=told, draw=draw))
    if any(run.found is not None and run.found.is_pruned for run in runs):
        charts += [
            Chart(
                name="churn",
                title="Churn",
                told="Share of all samples that return to an epoch. Dashed: newly pruned.",
                draw=partial(_churn, runs),
            ),
            Chart(
                name="overlap",
                title="Overlap with the epoch before",
                told="Share of what an epoch keeps that the one before kept too. Dotted: of a draw by chance.",
                draw=partial(_epochs, runs, lambda e: e.overlap, lambda e: e.expected_overlap, dashes=":", whole=True),
            ),
        ]
    return charts


def charts_of_run(run: ReportedRun, at: int) -> list[Chart]:
    """What one run has for itself; ``at`` is its place among the runs."""
    found = run.found
    if found is None or found.decisions is None:
        return []
    charts, decisions, is_pruned = [], found.decisions, found.is_pruned
    if found.scores is not None and not np.isnan(found.scores).all():
        kept = f"Filled: kept in epoch {decisions.epochs[-1]}. " if is_pruned else ""
        charts.append(
            Chart(
                name=f"scores-{at}",
                title="Scores",
                told=f"{kept}Scores after epoch {found.scored_after}, the only ones that a run folder has; without the "
                "outer 0.1 % at each end.",
                draw=partial(_scores, found.scores, decisions.last.keep_mask() if is_pruned else None, COLOURS[at]),
            )
        )
    if sum(bool(epoch.score_quantiles) for epoch in run.epochs) > 1:
        charts.append(
            Chart(
                name=f"scores-by-epoch-{at}",
                title="Scores by epoch",
                told="That an epoch was chosen by: their median, and the bands of the middle 50 and 90 %.",
                draw=partial(_scores_by_epoch, run.epochs, COLOURS[at]),
            )
        )
    if is_pruned:
        charts.append(
            Chart(
                name=f"times-kept-{at}",
                title="How often samples were kept",
                told=f"In how many of {len(decisions.epochs)} pruned epochs; share of the samples.",
                draw=partial(_times_kept, decisions.times_kept, len(decisions.epochs), COLOURS[at]),
            )
        )
    if classes := found.classes():
        shown = f"The {_MOST_CLASSES // 2} at each end of {len(classes)} classes. " if _cut(classes) else ""
        charts.append(
            Chart(
                name=f"classes-{at}",
                title="Kept of each class",
                told=f"{shown}Share kept in epoch {decisions.epochs[-1]}. Line: of all samples.",
                draw=partial(_classes, classes, COLOURS[at]),
            )
        )
    return charts


# Drawing ----------------------------------------------------------------------------------------------------------


def _coloured(runs: Runs) -> Iterator[tuple[ReportedRun, str]]:
    return zip(runs, COLOURS, strict=False)


def _line(axes: Axes, rows: Sequence[Any], x: Value, y: Value, *, points: bool = True, **look: Any) -> None:
    """Values of rows; gaps where there are none, and points where a line would show nothing."""
    rows = thinned(rows)
    pairs = [(x(row), y(row)) for row in rows]
    values = [np.nan if value is None else value for _, value in pairs]
    if points and len(values) <= 32:
        look = {"marker": "o", "markersize": 3, **look}
    axes.plot([float("nan") if at is None else at for at, _ in pairs], values, **look)


def _finish(figure: Figure, axes: Axes, legend: bool, *, whole: bool = False) -> Figure:
    if whole:
        axes.set_ylim(-0.03, 1.03)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
    return figure


def _epochs(runs: Runs, solid: Value, other: Value, legend: bool, *, dashes: str = "--", whole: bool = False) -> Figure:
    figure, axes = blank(percent=True)
    for run, colour in _coloured(runs):
        _line(axes, run.epochs, lambda e: e.epoch, other, points=False, color=colour, linestyle=dashes, linewidth=1.2)
        _line(axes, run.epochs, lambda e: e.epoch, solid, color=colour, label=run.name)
    return _finish(figure, axes, legend, whole=whole)


def _save_ratio(runs: Runs, legend: bool) -> Figure:
    figure, axes = blank(percent=True)
    for run, colour in _coloured(runs):
        _line(axes, run.epochs, lambda e: e.epoch, lambda e: e.save_ratio, color=colour, label=run.name)
        if run.epochs and run.planned_save_ratio is not None:
            axes.axhline(run.planned_save_ratio, color=colour, linestyle="--", linewidth=1.2)
    return _finish(figure, axes, legend)


def _churn(runs: Runs, legend: bool) -> Figure:
    figure, axes = blank(percent=True)
    for run, colour in _coloured(runs):
        if run.found is None:
            continue
        size = run.found.run["samples"]

        def pruned(epoch: Any, size: int = size) -> float | None:
            return None if epoch.newly_pruned is None else epoch.newly_pruned / size

        def back(epoch: Any, size: int = size) -> float:
            return epoch.returned / size

        _line(axes, run.epochs, lambda e: e.epoch, pruned, points=False, color=colour, linestyle="--", linewidth=1.2)
        _line(axes, run.epochs, lambda e: e.epoch, back, color=colour, label=run.name)
    return _finish(figure, axes, legend)


def _curve(runs: Runs, name: str, legend: bool, *, by_epoch: bool) -> Figure:
    figure, axes = blank(numbered="epochs" if by_epoch else "samples forwarded", percent="acc" in name)
    if not by_epoch:
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    for run, colour in _coloured(runs):
        for curve in run.curves:
            if curve.name == name:
                rows = list(zip(curve.epochs if by_epoch else curve.forwarded, curve.values, strict=True))
                _line(axes, rows, lambda row: row[0], lambda row: row[1], color=colour, label=run.name)
    return _finish(figure, axes, legend)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _scores(scores: NDArray[np.float32], keep: NDArray[np.bool_] | None, colour: str, legend: bool) -> Figure:
    known = ~np.isnan(scores)
    low, high = np.quantile(scores[known].astype(np.float64), (0.001, 0.999))
    edges = np.linspace(low, high, _MOST_BARS + 1) if low < high else np.array([low - 0.5, low + 0.5])
    figure, axes = blank(numbered=None)
    axes.set(xlabel="score", ylabel="samples")
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.stairs(np.histogram(scores[known], edges)[0], edges, color=MUTED, linewidth=1.2, label="all")
    if keep is not None:
        counts = np.histogram(scores[known & keep], edges)[0]
        axes.stairs(counts, edges, color=colour, fill=True, alpha=0.75, label="kept")
    return _finish(figure, axes, legend)


def _scores_by_epoch(epochs: Sequence[Any], colour: str, legend: bool) -> Figure:
    figure, axes = blank()
    scored = thinned([epoch for epoch in epochs if epoch.score_quantiles])
    at = [epoch.epoch for epoch in scored]
    for low, high, alpha in (("0.05", "0.95", 0.18), ("0.25", "0.75", 0.35)):
        lower, upper = ([epoch.score_quantiles[p] for epoch in scored] for p in (low, high))
        axes.fill_between(at, lower, upper, color=colour, alpha=alpha, linewidth=0)
    _line(axes, scored, lambda e: e.epoch, lambda e: e.score_quantiles["0.5"], color=colour)
    axes.set(ylabel="score")
    return _finish(figure, axes, legend)


def _times_kept(times: NDArray[np.int32], most: int, colour: str, legend: bool) -> Figure:
    width = -(-(most + 1) // _MOST_BARS)
    edges = np.arange(0, most + 1 + width, width) - 0.5
    figure, axes = blank(numbered="epochs that kept it", percent=True)
    axes.stairs(np.histogram(times, edges)[0] / len(times), edges, color=colour, fill=True, alpha=0.75)
    return _finish(figure, axes, legend)


def _cut(classes: Sequence[Any]) -> bool:
    return len(classes) > _MOST_CLASSES


def _classes(classes: Sequence[Mapping[str, Any]], colour: str, legend: bool) -> Figure:
    rows = sorted(classes, key=lambda row: (row["share"], row["label"]))
    total = sum(row["kept"] for row in rows) / sum(row["samples"] for row in rows)
    if _cut(rows):
        rows = [*rows[: _MOST_CLASSES // 2], *rows[-_MOST_CLASSES // 2 :]]
    figure, axes = blank(height=0.9 + 0.19 * len(rows), numbered=None)
    axes.grid(visible=False)
    axes.barh(range(len(rows)), [row["share"] for row in rows], height=0.72, color=colour, alpha=0.75)
    axes.axvline(total, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    return _finish(figure, axes, legend)


def _name(row: Mapping[str, Any]) -> str:
    name = printable(str(row["label"] if row["name"] is None else row["name"]))
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
