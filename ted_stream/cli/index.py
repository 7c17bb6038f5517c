"""``ted-stream index``: read WebDataset tars in place."""

from typing import Annotated

import typer
from rich.filesize import decimal

from ted_stream.cli.prepare import CORES

__all__ = ["index"]


def index(
    url_pattern: Annotated[
        str,
        typer.Argument(
            help="A tar or a brace pattern of tars in one folder, such as s3://bucket/x-{000000..001281}.tar"
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder or URI of the index, if the shards' is read-only; a folder here is the dataset's `local`.",
            show_default="beside the shards",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read shards.", show_default="all cores")] = CORES,
) -> None:
    """Find the samples in WebDataset tars, so that training shuffles, prunes and reads them in place.

    For example: ted-stream index "s3://bucket/imagenet-train-{000000..001281}.tar"
    """
    from ted_stream.cli.show import console, progress_bar
    from ted_stream.reading.tar_index import index_tars

    with progress_bar() as bar:
        task = bar.add_task("index", total=None)
        done = index_tars(
            url_pattern,
            out,
            workers=workers,
            progress=lambda count, total: bar.update(task, completed=count, total=total),
        )
    console.print(
        f"{done.samples:,} samples in {done.shards:,} shards, {decimal(done.bytes)}; index in {done.folder}",
        soft_wrap=True,
        highlight=False,
    )
