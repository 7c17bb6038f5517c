"""``ted-stream bench``: time and memory on this machine."""

from statistics import median
from typing import Annotated

import typer

__all__ = ["app"]

SIZES = [1_280_000, 100_000_000]

app = typer.Typer(help="Measure time and memory on this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure time and memory on this machine."""


@app.command()
def selection(
    samples: Annotated[list[int], typer.Option(min=1, help="Size of the dataset; may be given several times.")] = SIZES,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that own a part of the scores each.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 11,
) -> None:
    """The exact distributed selection of 30 % of the samples, in turns with numpy.argpartition in one process."""
    import numpy as np
    import torch
    from rich.table import Table

    from ted_stream.cli.show import console
    from ted_stream.pipelines.bench_selection import bench_selection

    table = Table(
        title=f"{ranks} ranks over gloo; numpy {np.__version__}, torch {torch.__version__}",
        caption="Seconds: median (least – most). Bytes per sample: peak beside the scores, and with their 4.",
    )
    table.add_column("samples", justify="right", no_wrap=True)
    for column in ("selection, s", "argpartition, s", "ratio", "bytes", "argpartition, bytes"):
        table.add_column(column, justify="right")
    for number in samples:
        row = bench_selection(number, ranks=ranks, repeats=repeats)
        table.add_row(
            f"{number:,}",
            _seconds(row.selection),
            _seconds(row.argpartition),
            f"{row.ratio:.2f}" if row.argpartition else "",
            _bytes(row.selection_bytes),
            _bytes(row.argpartition_bytes),
        )
    console.print(table)


def _seconds(values: list[float]) -> str:
    if not values:
        return "does not fit"
    return f"{median(values):.3g} ({min(values):.3g} – {max(values):.3g})"


def _bytes(value: float) -> str:
    if value != value:  # nan: the kernel does not tell
        return "unknown"
    return f"{value:.2f} + 4 = {value + 4:.2f}"
