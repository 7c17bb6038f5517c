"""``ted-stream export``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from ted_stream.cli.prepare import CORES

if TYPE_CHECKING:
    from ted_stream.export.selected import Written

__all__ = ["export"]


class To(str, Enum):
    """The formats of lists (`ted_stream.export.FORMATS`), and of datasets (`ted_stream.export.COPIES`)."""

    parquet = "parquet"
    jsonl = "jsonl"
    csv = "csv"
    datacomp = "datacomp"
    webdataset_keys = "webdataset-keys"
    hf_indices = "hf-indices"
    streaming_index = "streaming-index"
    files = "files"
    mds = "mds"
    webdataset = "webdataset"
    hf = "hf"


def export(
    run: Annotated[str, typer.Argument(help="The folder of a pruned run: a path or URI.", show_default=False)],
    to: Annotated[
        To, typer.Option(help="What to write: a list, or with mds, webdataset or hf a dataset of the kept samples.")
    ] = To.parquet,
    out: Annotated[
        str | None, typer.Option(help="Path or URI of the file or dataset.", show_default="manifest.parquet in RUN")
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
    weights: Annotated[
        bool | None,
        typer.Option(
            help="Of mds alone: beside it, if its samples weigh unlike each other in the loss.", show_default="weights"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that write a dataset; not for lists.", show_default="all cores"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what an export wrote there before.")] = False,
) -> None:
    """Write which samples a run kept, or these samples, from any run folder: finished, killed, or still at work.

    For example: ted-stream export ted_stream_runs/my-run --epoch 12 --to csv --out kept.csv
    """
    from ted_stream.cli.show import console
    from ted_stream.export import COPIES, Selection, export_run, materialise

    selection = Selection(epoch=epoch, min_epochs=min_epochs, threshold=threshold, ratio=ratio, lowest=lowest)
    folders = _dataset_of(run) if dataset is None else dataset
    if to.value in COPIES:
        if out is None:
            raise ValueError(f"{to.value} needs the folder or URI of a dataset to write: --out.")
        if all_samples:
            raise ValueError(f"{to.value} holds the samples that are kept; leave --all out.")
        with _progress() as progress:
            copied = materialise(
                run,
                out,
                to=to.value,
                selection=selection,
                dataset=folders,
                weights=weights is not False,
                workers=CORES if workers is None else workers,
                overwrite=overwrite,
                progress=progress,
            )
        lines = [_told(copied, f"in {copied.shards:,} shards, {decimal(copied.bytes)}"), *copied.notes]
    else:
        of_datasets = {"--weights": weights is True, "--no-weights": weights is False, "--workers": workers is not None}
        odd = [option for option, is_given in of_datasets.items() if is_given]
        if odd:
            raise ValueError(f"{to.value} is a list, for which {' and '.join(odd)} would do nothing; leave that out.")
        with _progress() as progress:
            done = export_run(
                run,
                out,
                to=to.value,
                selection=selection,
                dataset=folders,
                all_samples=all_samples,
                overwrite=overwrite,
                progress=progress,
            )
        scored = done.scored_after
        scores = "without scores" if scored is None else f"with the scores after epoch {scored}"
        lines = [_told(done, scores), *done.notes]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _told(done: "Written", how: str) -> str:
    state = "" if done.finished else ", of a run that has not finished"
    which = f"which epoch {done.epoch} kept" if done.epoch is not None else str(done.selection)
    return f"{done.path}: {done.kept:,} of {done.samples:,} samples, {which}, {how}{state}"


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
        tasks = {stage: bar.add_task(stage, total=None, visible=False) for stage in ("lists", "rows", "copy")}
        yield lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total, visible=True)
