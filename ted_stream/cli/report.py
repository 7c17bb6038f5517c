"""``ted-stream report``."""

from typing import Annotated

import typer

__all__ = ["report"]


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, paths or URIs; also of runs on all data.", show_default=False, metavar="RUN…"
        ),
    ],
    out: Annotated[str, typer.Option(help="Path or URI of the page.")] = "report.html",
    data: Annotated[
        str | None,
        typer.Option(
            help="Dataset that they trained on, for classes and samples.", show_default="that of a run's config"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of each sort to show, 0 to 24.")] = 12,
    pngs: Annotated[
        str | None, typer.Option(help="Folder for the charts as files.", show_default="none are written")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
) -> None:
    """Write what runs kept, saved and learnt as one HTML file, which opens without a network.

    Of finished and killed runs, and of those that are still at work: keep and save ratios, accuracy and loss, churn,
    scores, classes, and the highest, lowest and most contested samples.

    For example: ted-stream report runs/random runs/ted --out report.html
    """
    from ted_stream.cli.show import console
    from ted_stream.pipelines.report.report import write_report

    done = write_report(runs, out, data=data, samples=samples, pngs=pngs, overwrite=overwrite)
    for note in done.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    pngs_told = f", and {len(done.pngs)} charts in {pngs}" if done.pngs else ""
    console.print(f"{done.path}: {done.size / 1e6:.2f} MB{pngs_told}", soft_wrap=True, highlight=False, markup=False)
