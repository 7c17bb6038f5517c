"""The figures of an analysis, as PNG files' bytes. Runs have the same colour everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..figures import as_png
from ..training.compare import headline
from ..training.metrics_record import LABELS
from .results import RunAnalysis

__all__ = ["figures"]

WIDTH, HEIGHT = 9.0, 3.8


def figures(runs: Sequence[RunAnalysis]) -> Mapping[str, bytes]:
    """A PNG for each figure that there are numbers for, by the name of its file.

    Args:
        runs: in the order of their colours.
    """
    drawn: dict[str, Callable[[], Figure]] = {}
    if any(run.losses for run in runs):
        drawn["losses.png"] = lambda: _losses(runs)
    if _boxes(runs):
        drawn["least_kept.png"] = lambda: _least_kept(runs)
    if any(run.gradients for run in runs):
        drawn["gradients.png"] = lambda: _gradients(runs)
    if any(run.interpolation for run in runs):
        drawn["interpolation.png"] = lambda: _interpolation(runs)
    return {name: as_png(draw()) for name, draw in drawn.items()}


def _two_axes(title: str) -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    return figure, left, right


def _line(axes: Axes, rows: Sequence[Any], x: str, y: str, **look: Any) -> None:
    """The values of one field over those of another; gaps where there are none."""
    values = [getattr(row, y) for row in rows]
    if any(value is not None for value in values):
        axes.plot([getattr(row, x) for row in rows], [float("nan") if v is None else v for v in values], **look)


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    if x == "epochs":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _losses(runs: Sequence[RunAnalysis]) -> Figure:
    """TED, Fig. 2."""
    figure, left, right = _two_axes("Training loss on kept and on pruned data")
    for at, run in enumerate(runs):
        look = {"color": f"C{at}", "marker": ".", "markersize": 4}
        if run.least_kept is None:
            for axes in (left, right):
                _line(axes, run.losses, "after", "loss", label=f"{run.name}: all", **look)
            continue
        _line(left, run.losses, "after", "kept_loss", label=f"{run.name}: kept", **look)
        _line(left, run.losses, "after", "pruned_loss", label=f"{run.name}: pruned", linestyle="--", **look)
        _line(right, run.losses, "after", "most_kept_loss", label=f"{run.name}: the others", **look)
        _line(right, run.losses, "after", "least_kept_loss", label=f"{run.name}: least kept", linestyle="--", **look)
    _finish(left, "by the epoch just over", "epochs", "mean loss")
    _finish(right, "kept least often over the whole run", "epochs", "mean loss")
    return figure


def _least_kept(runs: Sequence[RunAnalysis]) -> Figure:
    """TED, Fig. 1."""
    figure = Figure(figsize=(max(WIDTH / 2, 1.6 * len(runs) + 2), HEIGHT), layout="constrained")
    axes = figure.subplots()
    boxes, colours = zip(*_boxes(runs), strict=True)
    means = {"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"}
    drawn = axes.bxp(
        boxes, showfliers=False, showmeans=True, patch_artist=True, meanprops=means, medianprops={"color": "black"}
    )
    for box, colour in zip(drawn["boxes"], colours, strict=True):
        box.set_facecolor(colour)
    axes.tick_params(axis="x", labelsize="small")
    _finish(axes, "Loss at the end: 5, 25, 50, 75, 95 %, and mean", "(× epochs that kept a sample, on average)", "loss")
    return figure


def _boxes(runs: Sequence[RunAnalysis]) -> list[tuple[dict[str, Any], tuple[str, float]]]:
    """A box of each run's parts that has finite losses, as matplotlib takes it, and its colour."""
    found = []
    for at, run in enumerate(runs):
        for label, spread, opacity in (("least kept", run.least_kept, 0.9), ("the others", run.most_kept, 0.3)):
            if spread is None or None in spread.quantiles:
                continue
            low, first, median, third, high = spread.quantiles
            box: dict[str, Any] = {
                "whislo": low,
                "q1": first,
                "med": median,
                "q3": third,
                "whishi": high,
                "mean": spread.mean,
            }
            box["label"] = f"{run.name}\n{label}\n{spread.mean_times_kept:.1f}×"
            found.append((box, (f"C{at}", opacity)))
    return found


def _gradients(runs: Sequence[RunAnalysis]) -> Figure:
    """TED, Fig. 4."""
    figure, left, right = _two_axes("The gradient of kept data beside that of all data")
    for at, run in enumerate(runs):
        look = {"color": f"C{at}", "marker": ".", "markersize": 4}
        rows = run.gradients
        _line(left, rows, "after", "pearson", label=f"{run.name}: kept", **look)
        _line(left, rows, "after", "weighted_pearson", label=f"{run.name}: kept, weighted", linestyle="-.", **look)
        _line(left, rows, "after", "random_pearson", label=f"{run.name}: as many at random", linestyle=":", **look)
        _line(right, rows, "after", "norm_ratio", label=run.name, **look)
    _finish(left, "Pearson correlation", "epochs", "correlation")
    right.axhline(1, color="grey", linewidth=0.8)
    _finish(right, "norm, relative to all data's", "epochs", "ratio of norms")
    return figure


def _interpolation(runs: Sequence[RunAnalysis]) -> Figure:
    """TED, Fig. 8."""
    figure, left, right = _two_axes("From θ₁ (α = 0) to θ_T (α = 1)")
    metric = headline(list(next(run for run in runs if run.interpolation).interpolation[0].test))
    for at, run in enumerate(runs):
        if not run.interpolation:
            continue
        look = {"color": f"C{at}", "marker": ".", "markersize": 4}
        _line(left, run.interpolation, "alpha", "loss", label=run.name, **look)
        values = [point.test.get(metric) for point in run.interpolation]
        right.plot(
            [point.alpha for point in run.interpolation],
            [float("nan") if value is None else value for value in values],
            label=run.name,
            **look,
        )
    _finish(left, "training split", "α", "mean loss")
    _finish(right, "test split", "α", LABELS.get(metric, metric))
    return figure
