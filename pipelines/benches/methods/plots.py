"""A sweep's results as pictures: accuracy against what was saved, and against time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from ted_stream.files import write_bytes

from ...figures import as_png
from .run import Outcome
from .sweep import FULL
from .tables import grouped

__all__ = ["draw"]


def draw(outcomes: Sequence[Outcome], out: Path) -> list[Path]:
    """Write a picture per regime and length and axis, each point the mean over seeds with its standard deviation.

    Args:
        outcomes: of a sweep.
        out: folder of the PNG files.

    Returns:
        Their paths.
    """
    paths = []
    axes: dict[str, tuple[str, Callable[[Outcome], float]]] = {
        "saving": ("save ratio, measured", lambda one: one.save_ratio),
        "time": ("seconds of training, scoring before it included", lambda one: one.seconds + one.scoring_seconds),
    }
    for regime, epochs in dict.fromkeys((one.regime, one.epochs) for one in outcomes):
        mine = [one for one in outcomes if (one.regime, one.epochs) == (regime, epochs)]
        for axis, (label, of) in axes.items():
            path = out / f"{regime}-{epochs}ep-{axis}.png"
            write_bytes(str(path), _picture(mine, f"{regime}, {epochs} epochs", label, of))
            paths.append(path)
    return paths


def _picture(outcomes: Sequence[Outcome], title: str, label: str, of: Callable[[Outcome], float]) -> bytes:
    by_arm: dict[str, dict[float, list[Outcome]]] = {}
    for (_, _, saving), arms in sorted(grouped(outcomes).items()):
        for name, found in arms.items():
            by_arm.setdefault(name, {})[saving if name != FULL else 0.0] = found
    figure = Figure(figsize=(10, max(6, 0.22 * len(by_arm))), layout="constrained")  # the legend has a line for each
    plot = figure.add_subplot()
    for number, (name, points) in enumerate(by_arm.items()):
        groups = list(points.values())
        plot.errorbar(
            [mean(map(of, group)) for group in groups],
            [100 * mean(one.accuracy for one in group) for group in groups],
            yerr=[100 * stdev([one.accuracy for one in group]) if len(group) > 1 else 0.0 for group in groups],
            marker="os^vD*"[number % 6],
            color=f"C{number % 10}",
            linestyle=("-", "--", ":")[number // 10 % 3],
            capsize=2,
            label=name,
        )
    plot.set(title=title, xlabel=label, ylabel="test accuracy, % (mean and standard deviation over seeds)")
    plot.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return as_png(figure)
