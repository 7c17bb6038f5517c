"""Tables, progress bars and quiet libraries, shared by the commands."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ted_stream.pipelines.training.metrics_record import LABELS

if TYPE_CHECKING:
    from ted_stream.pipelines.training.compare import Arm
    from ted_stream.pipelines.training.train import Result

__all__ = [
    "LABELS",
    "console",
    "let_one_speak",
    "progress_bar",
    "quiet",
    "show_arms",
    "show_epochs",
    "show_places",
    "show_result",
    "shown_metric",
]

console = Console()


def progress_bar() -> Progress:
    """A bar with count and time, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def quiet() -> None:
    """Leave our own warnings visible and the host libraries' chatter out."""
    for name in ("composer", "streaming", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from ted_stream.engine.guard import SelectionWarning

    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module="ted_stream")
    warnings.filterwarnings("default", category=SelectionWarning)  # which points at the line that trains


def let_one_speak() -> None:
    """Of the ranks that train together let the first alone show what they all know."""
    console.quiet = int(os.environ.get("WORLD_SIZE", 1)) > 1 and os.environ.get("RANK") != "0"


@contextmanager
def show_epochs() -> Iterator[None]:
    """Show on standard error what our own modules log: rank 0 a line per epoch, above what bars there are."""
    ours, handler = logging.getLogger("ted_stream"), _BesideBars()
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(level)
        ours.removeHandler(handler)


class _BesideBars(logging.Handler):
    """Writes lines as tqdm does, in whose bars Composer shows its epochs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; where that fails, the run goes on without."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def shown_metric(name: str, mean: float, deviation: float | None = None) -> str:
    """A test metric, and its spread over seeds: accuracies in per cent."""
    scale, unit = (100, " %") if "Accuracy" in name else (1, "")
    digits = 2 if scale == 100 else 4
    text = f"{scale * mean:.{digits}f}"
    if deviation is not None and deviation == deviation:  # not nan: one seed has no deviation
        text += f" ± {scale * deviation:.{digits}f}"
    return text + unit


def _planned(save_ratio: float | None) -> str:
    return "as it goes" if save_ratio is None else f"{save_ratio:.4f}"


def show_result(result: "Result") -> None:
    """One run as one table."""
    table = Table(title=f"{result.run_name}: {result.epochs} epochs", show_header=False)
    for name, value in result.metrics.items():
        table.add_row(LABELS.get(name, name), shown_metric(name, value))
    table.add_row("samples forwarded", f"{result.forwarded:,} of {result.samples * result.epochs:,}")
    planned = _planned(result.planned_save_ratio)
    table.add_row("save ratio", f"planned {planned}, measured {result.save_ratio:.4f}")
    if result.tokens is not None:
        saved = "" if result.token_save_ratio is None else f", save ratio {result.token_save_ratio:.4f}"
        table.add_row("tokens forwarded", f"{result.tokens:,}{saved}")
    table.add_row("seconds", f"{result.seconds:.1f} training, {result.wall_seconds:.1f} with evaluation")
    console.print(table)
    show_places(result)


def show_places(result: "Result") -> None:
    """Where a run left what."""
    for name, place in (
        ("run folder", result.folder),
        ("skip-lists", result.skip_lists),
        ("manifest", result.manifest),
        ("model", result.model),
    ):
        if place is not None:
            console.print(f"{name}: {place}", soft_wrap=True, highlight=False)


def show_arms(title: str, arms: "Sequence[Arm]") -> None:
    """A comparison as one table, by its headline metric; `compare.json` holds the others."""
    from ted_stream.pipelines.training.compare import BASELINES, headline

    metric = headline(list(arms[0].results[0].metrics))
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    table.add_column(LABELS.get(metric, metric), justify="right", no_wrap=True)
    several = len(arms[0].results) > 1
    baselines = [arm for arm in arms if arm.method in BASELINES and several]
    has_tokens = any(arm.mean_of("token_save_ratio") is not None for arm in arms)
    columns = ["samples forwarded", "save ratio planned", "save ratio measured"]
    columns += [*(["save ratio of tokens"] if has_tokens else []), "seconds"]
    for column in columns:
        table.add_column(column, justify="right")
    for arm in arms:
        tokens = arm.mean_of("token_save_ratio")
        table.add_row(
            arm.method,
            shown_metric(metric, *arm.spread(metric)),
            f"{arm.mean_of('forwarded'):,.0f}",
            _planned(arm.mean_of("planned_save_ratio")),
            f"{arm.mean_of('save_ratio'):.4f}",
            *(["" if tokens is None else f"{tokens:.4f}"] if has_tokens else []),
            f"{arm.mean_of('seconds'):.1f}",
        )
    console.print(table)
    if baselines:
        _show_differences(metric, arms, baselines)


def _show_differences(metric: str, arms: "Sequence[Arm]", baselines: "Sequence[Arm]") -> None:
    table = Table(title=f"{LABELS.get(metric, metric)}, differences: mean over the seeds ± half of its 95 % interval")
    table.add_column("method", no_wrap=True)
    for other in baselines:
        table.add_column(f"less {other.method}", justify="right", no_wrap=True)
    for arm in arms:
        differences = ("" if arm is other else _difference(metric, *arm.less(other, metric)) for other in baselines)
        table.add_row(arm.method, *differences)
    console.print(table)


def _difference(metric: str, mean: float, half: float) -> str:
    text = shown_metric(metric, mean, half)
    return text if text.startswith("-") else f"+{text}"
