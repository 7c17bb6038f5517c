"""``ted-stream export``."""

from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[str, typer.Argument(help="The folder of a pruned run: a path or URI.", show_default=False)],
    epoch: Annotated[
        int | None, typer.Option(min=0, help="Whose kept samples to list.", show_default="the last that was pruned")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Path or URI of the manifest.", show_default="manifest.parquet in RUN")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write the list of what a run kept, with scores, from any run folder: finished, killed, or still at work.

    For example: ted-stream export ted_stream_runs/my-run --epoch 12 --out kept.parquet
    """
    from ted_stream.cli.show import console
    from ted_stream.export import export_manifest

    done = export_manifest(run, epoch=epoch, path=out, overwrite=overwrite)
    state = "" if done.finished else ", of a run that has not finished"
    scores = "without scores" if done.scored_after is None else f"with the scores after epoch {done.scored_after}"
    console.print(
        f"{done.path}: {done.kept:,} of {done.samples:,} samples, which epoch {done.epoch} kept, {scores}{state}",
        highlight=False,
        soft_wrap=True,
    )
