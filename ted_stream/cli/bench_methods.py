"""``ted-stream bench methods``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ted_stream.pipelines.benches.methods.run import Outcome
    from ted_stream.pipelines.benches.methods.sweep import Run

__all__ = ["methods"]


def methods(
    config: Annotated[Path, typer.Argument(help="YAML file of the sweep; see configs/bench_*.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of results.", show_default="runs/<name of CONFIG>")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the device.")] = 1,
    seeds: Annotated[int | None, typer.Option(min=1, help="Instead of the file's.", show_default="CONFIG's")] = None,
) -> None:
    """Train with every method at the same measured saving, over seeds, lengths and regimes, beside two baselines.

    Those are random subsets and full data for as many steps. Results go to results.parquet in the folder as runs end,
    and at the end to results.md and PNG files; begun again, the command does the runs that are left.

    For example: ted-stream bench methods configs/bench_digits.yaml --processes 2
    """
    from ted_stream.pipelines.benches.methods.sweep import load_sweep

    sweep = load_sweep(config)  # refused before the slow imports
    if seeds is not None:
        sweep.seeds = seeds
    out = Path("runs") / config.stem if out is None else out

    from ted_stream.cli.show import console, progress_bar, quiet
    from ted_stream.files import write_bytes
    from ted_stream.pipelines.benches.methods.execute import execute
    from ted_stream.pipelines.benches.methods.plots import draw
    from ted_stream.pipelines.benches.methods.tables import markdown

    quiet()
    with progress_bar() as bar:
        task = bar.add_task("runs")

        def finished(run: "Run", outcome: "Outcome | Exception") -> None:
            bar.advance(task)
            what = f"{run.regime}, {run.epochs} epochs, saving {run.saving}, seed {run.seed}, {run.arm}"
            if isinstance(outcome, Exception):
                said = f"failed: {outcome}"
            else:
                said = (
                    f"{100 * outcome.accuracy:.2f} %, save ratio {outcome.save_ratio:.3f}, {outcome.seconds:.1f} s of "
                    f"training"
                )
            console.print(f"{what}: {said}", highlight=False, soft_wrap=True)

        outcomes, failed = execute(
            sweep, out, processes=processes, planned=lambda count: bar.update(task, total=count), finished=finished
        )
    if outcomes:
        text = markdown(outcomes)
        write_bytes(str(out / "results.md"), text.encode())
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        for path in draw(outcomes, out):
            console.print(str(path), highlight=False, soft_wrap=True)
    if failed:
        reasons = "; ".join(f"{run.arm} ({error})" for run, error in failed[:3])
        text = f"Error: of the runs {len(failed)} failed, among them {reasons}. The same command tries them again."
        console.print(text, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
