"""``ted-stream analyse``."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ted_stream.pipelines.analysis.results import RunAnalysis

__all__ = ["analyse"]


def analyse(
    run: Annotated[str, typer.Argument(help="Run folder that `ted-stream train` made.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data.KEY=VALUE]…",
            help="Where the data lie now (data.path), or how to read them (data.num_workers, data.eval_batch_size).",
            show_default=False,
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", help="Another run on the same data, in the same figures; repeatable.", metavar="RUN"),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or URI of the results.", show_default="RUN/analysis")] = None,
    only: Annotated[str, typer.Option(help="What to compute, separated by commas.")] = "losses,gradients,interpolation",
    every: Annotated[int, typer.Option(min=1, help="Take every so many-th epoch's checkpoint, and the last.")] = 1,
    start: Annotated[
        int, typer.Option(min=0, help="Epochs after which the interpolation begins; 0: as it was initialised.")
    ] = 0,
    points: Annotated[int, typer.Option(min=2, help="Points of the interpolation, its ends included.")] = 21,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier analysis.")] = False,
) -> None:
    """Show what pruning did to a run: the TED paper's Figures 1, 2, 4 and 8, from its checkpoints and skip-lists.

    Loss on kept and on pruned data; the gradient of kept data beside all data's; loss between first and last weights.

    Of runs with save_interval=1ep, by either trainer.

    For example: ted-stream analyse runs/ted --with runs/random --only losses
    """
    from ted_stream.cli.show import progress_bar, quiet

    quiet()
    from ted_stream.pipelines.analysis.analyse import analyse as run_analyses

    bar, tasks = progress_bar(), []

    def told(done: int, total: int) -> None:
        if not tasks:  # nothing is refused any more
            tasks.append(bar.add_task("analyse", total=total))
            bar.start()
        bar.update(tasks[0], completed=done)

    try:
        found = run_analyses(
            [run, *(others or ())],
            out=out,
            overrides=overrides or (),
            parts=[part.strip() for part in only.split(",")],
            every=every,
            start=start,
            points=points,
            overwrite=overwrite,
            progress=told,
        )
    finally:
        if tasks:
            bar.stop()
    for one in found.runs:
        _show(one)
    from ted_stream.cli.show import console

    for path in found.files:
        console.print(path, soft_wrap=True, highlight=False, markup=False)


def _show(run: "RunAnalysis") -> None:
    from rich.table import Table

    from ted_stream.cli.show import LABELS, console, shown_metric

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    table = Table(title=f"{run.name}: {run.method}, {run.epochs} epochs of {run.samples:,} samples", show_header=False)
    if run.losses:
        last = run.losses[-1]
        table.add_row(f"loss after {last.after} epochs", number(last.loss))
        if run.least_kept is not None and run.most_kept is not None:
            for name, spread in (("of the least kept", run.least_kept), ("of the others", run.most_kept)):
                kept = f"{spread.samples:,} samples, kept in {spread.mean_times_kept:.1f} epochs"
                table.add_row(f"… {name}", f"{number(spread.mean)} ({kept})")
    if run.gradients:
        for row in (run.gradients[0], run.gradients[-1])[: len(run.gradients)]:
            random = f"(as many at random: {number(row.random_pearson)})"
            table.add_row(f"gradient correlation after {row.after} epochs", f"{number(row.pearson)} {random}")
    if run.interpolation and run.interpolated is not None:
        table.add_row("between weights after epochs", " and ".join(map(str, run.interpolated)))
        finite = [(point.loss, point.alpha) for point in run.interpolation if point.loss is not None]
        if finite:
            table.add_row("highest loss there", "{:.4f} at α = {:.2f}".format(*max(finite)))
        for name, value in run.interpolation[-1].test.items():
            if value is not None:
                table.add_row(LABELS.get(name, name), shown_metric(name, value))
    console.print(table)
    for note in run.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
