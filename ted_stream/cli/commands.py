"""The commands. Heavy imports happen inside the commands, so that ``--help`` is immediate."""

import typer

from ted_stream.cli import (
    analyse,
    bench,
    compare,
    export,
    index,
    inspection,
    methods,
    prepare,
    report,
    score,
    train,
    verify,
)
from ted_stream.cli.errors import Commands

__all__ = ["app"]

app = typer.Typer(
    name="ted-stream",
    cls=Commands,
    help="Train on the samples that still teach the model, read only those, and keep the accuracy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(prepare.app, name="prepare")
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("score")(score.score)
app.command("analyse")(analyse.analyse)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("inspect")(inspection.inspect)
app.command("report")(report.report)
app.command("methods")(methods.methods)
app.command("index")(index.index)
app.add_typer(bench.app, name="bench")


@app.callback()
def main(
    traceback: bool = typer.Option(False, "--traceback", help="Show where an error arose, for bug reports."),
) -> None:
    """Train on the samples that still teach the model, read only those, and keep the accuracy."""
