"""``ted-stream export``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Annotated

import typer

__all__ = ["export"]


class To(str, Enum):
    """The formats, see `ted_stream.export.FORMATS`."""

    parquet = "parquet"
    jsonl = "jsonl"
    csv = "csv"
    datacomp = "datacomp"
    webdataset_keys = "webdataset-keys"
    hf_indices = "hf-indices"
    streaming_index = "streaming-index"
    files = "files"


def export(
    run: Annotated[str, typer.Argument(help="The folder of a pruned run: a path or URI.", show_default=False)],
    to: Annotated[To, typer.Option(help="What to write; ted_stream/export/README.md describes each.")] = To.parquet,
    out: Annotated[
        str | None, typer.Option(help="Path or URI of the file.", show_default="manifest.parquet in RUN")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="The samples that it kept.", show_default="the last that was pruned")
    ] = None,
    min_epochs: Annotated[
        int | None, typer.Option(min=1, help="The samples that at least so many epochs kept.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The samples whose running score is at least this.", show_default=False)
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="This share of all samples, of the highest scores.", show_default=False)
    ] = None,
    lowest: Annotated[bool, typer.Option("--lowest", help="Of the lowest scores instead.")] = False,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of the dataset, or of one of its streams (several times), whose origins name the samples.",
            show_default="that of the run's config",
        ),
    ] = None,
    all_samples: Annotated[
        bool, typer.Option("--all", help="List the samples that are not kept, too; parquet, csv and jsonl.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write which samples a run kept, from any run folder: finished, killed, or still at work.

    For example: ted-stream export ted_stream_runs/my-run --epoch 12 --to csv --out kept.csv
    """
    from ted_stream.cli.show import console
    from ted_stream.export import Selection, export_run

    selection = Selection(epoch=epoch, min_epochs=min_epochs, threshold=threshold, ratio=ratio, lowest=lowest)
    with _progress() as progress:
        done = export_run(
            run,
            out,
            to=to.value,
            selection=selection,
            dataset=_dataset_of(run) if dataset is None else dataset,
            all_samples=all_samples,
            overwrite=overwrite,
            progress=progress,
        )
    state = "" if done.finished else ", of a run that has not finished"
    which = f"which epoch {done.epoch} kept" if done.epoch is not None else str(done.selection)
    scores = "without scores" if done.scored_after is None else f"with the scores after epoch {done.scored_after}"
    lines = [f"{done.path}: {done.kept:,} of {done.samples:,} samples, {which}, {scores}{state}", *done.notes]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _dataset_of(run: str) -> list[str]:
    """The dataset that the run's config names, if it has one and it is still the same."""
    try:
        from ted_stream.pipelines.training.trained_on import trained_on
    except ModuleNotFoundError:  # without the extra, in which there are no recipes
        return []
    folder = trained_on(run)
    return [] if folder is None else [folder]


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, shown once it begins."""
    from ted_stream.cli.show import progress_bar

    with progress_bar() as bar:
        tasks = {stage: bar.add_task(stage, total=None, visible=False) for stage in ("lists", "rows")}
        yield lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total, visible=True)
