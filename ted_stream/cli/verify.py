"""``ted-stream verify``."""

from typing import Annotated

import typer

__all__ = ["verify"]

_MARKS = {True: "ok", False: "FAILED", None: "unknown"}


def verify(
    manifest: Annotated[str, typer.Argument(help="A manifest in Parquet: a path or URI.", show_default=False)],
    dataset: Annotated[
        list[str], typer.Argument(help="The folder of the dataset, or those of its streams.", show_default=False)
    ],
    shards: Annotated[int, typer.Option(min=0, help="Shards whose bytes are read.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the draw of these shards.")] = 0,
) -> None:
    """Check a manifest against a dataset, a line per check; ends with status 1 if one fails.

    For example: ted-stream verify kept.parquet data/cifar10
    """
    from ted_stream.cli.show import console
    from ted_stream.export import verify

    failed = False
    for check in verify(manifest, dataset, shards=shards, seed=seed):
        console.print(f"{_MARKS[check.ok]:8}{check.name}: {check.told}", highlight=False, soft_wrap=True, markup=False)
        failed |= check.ok is False
    if failed:
        raise typer.Exit(1)
