"""``ted-stream bench``: time and memory on this machine."""

from enum import Enum
from statistics import median
from typing import Annotated

import typer

__all__ = ["app"]

SIZES = [1_280_000, 100_000_000]
IMAGENET = 1_281_167


class Model(str, Enum):
    """What a step trains."""

    convnet = "convnet"
    resnet18 = "resnet18"
    gpt = "gpt"


class Device(str, Enum):
    """Where."""

    cpu = "cpu"
    gpu = "gpu"


MODELS = list(Model)

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


@app.command()
def step(
    model: Annotated[list[Model], typer.Option(help="May be given several times.")] = MODELS,
    rounds: Annotated[int, typer.Option(min=1, help="Epochs of every variant, in turns.")] = 20,
    steps: Annotated[int, typer.Option(min=2, help="Of an epoch; the first is not timed.")] = 6,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a step.", show_default="by model")] = None,
    device: Annotated[Device | None, typer.Option(show_default="gpu if there is one")] = None,
) -> None:
    """A training step with TED at each site, in turns with the same step of Composer alone."""
    import torch
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.bench_step import VARIANTS, bench_step

    quiet()
    if device is None:
        device = Device.gpu if torch.cuda.is_available() else Device.cpu
    name = torch.cuda.get_device_name() if device is Device.gpu else f"CPU, {torch.get_num_threads()} threads"
    table = Table(
        title=f"{name}; torch {torch.__version__}",
        caption="Seconds of the step per second of the plain step beside it: median (quartiles) of the rounds.",
    )
    table.add_column("model", no_wrap=True)
    for column in ("batch size", "plain, ms", *VARIANTS):
        table.add_column(column, justify="right")
    for each in model:
        row = bench_step(each.value, rounds=rounds, steps=steps, batch_size=batch_size, device=device.value)
        quartiles = (row.quartiles(variant) for variant in VARIANTS)
        ratios = (f"{middle:.3f} ({low:.3f} – {high:.3f})" for low, middle, high in quartiles)
        table.add_row(row.model, str(row.batch_size), f"{row.milliseconds:.3g}", *ratios)
    console.print(table)


@app.command()
def boundary(
    samples: Annotated[int, typer.Option(min=1, help="Size of the dataset.")] = IMAGENET,
    shards: Annotated[int, typer.Option(min=1, help="That the samples are spread over.")] = 1300,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a step on each rank.")] = 1024,
) -> None:
    """What TED does between two epochs of a real run with a tiny model, on samples of a few bytes."""
    import torch
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.bench_boundary import PARTS, SHARE, bench_boundary

    quiet()
    boundaries = bench_boundary(samples, shards=shards, ranks=ranks, batch_size=batch_size)
    table = Table(
        title=f"{samples:,} samples in {shards:,} shards, {ranks} ranks over gloo; torch {torch.__version__}",
        caption="Seconds on rank 0, waiting for the others included.",
    )
    table.add_column("part", no_wrap=True)
    for each in boundaries:
        table.add_column(f"before epoch {each.epoch}, {each.kept:,} kept", justify="right")
    for part, what in PARTS.items():
        table.add_row(f"{part}: {what}", *(f"{each.parts[part]:.3f}" for each in boundaries))
    table.add_section()
    table.add_row("all", *(f"{each.seconds:.3f}" for each in boundaries))
    table.add_row("of it recorded as boundary_seconds", *(f"{each.recorded:.3f}" for each in boundaries))
    table.add_row(f"epoch of which it is {SHARE:.0%}", *(f"{each.seconds / SHARE:.0f}" for each in boundaries))
    console.print(table)


def _seconds(values: list[float]) -> str:
    if not values:
        return "does not fit"
    return f"{median(values):.3g} ({min(values):.3g} – {max(values):.3g})"


def _bytes(value: float) -> str:
    if value != value:  # nan: the kernel does not tell
        return "unknown"
    return f"{value:.2f} + 4 = {value + 4:.2f}"
