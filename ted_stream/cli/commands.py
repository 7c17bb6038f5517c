"""The commands. Heavy imports happen inside the commands, so that ``--help`` is immediate."""

from typing import Annotated

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
from ted_stream.cli.settings_help import WithScoringSettings, WithTrainingSettings

__all__ = ["app"]

app = typer.Typer(
    name="ted-stream",
    cls=Commands,
    help="Train on the samples that still teach the model, read only those, and keep the accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(prepare.app, name="prepare")
app.command("train", cls=WithTrainingSettings)(train.train)
app.command("compare", cls=WithTrainingSettings)(compare.compare)
app.command("score", cls=WithScoringSettings)(score.score)
app.command("analyse")(analyse.analyse)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("inspect")(inspection.inspect)
app.command("report")(report.report)
app.command("methods")(methods.methods)
app.command("index")(index.index)
app.add_typer(bench.app, name="bench")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("ted-stream"))
        raise typer.Exit


@app.callback()
def main(
    traceback: bool = typer.Option(False, "--traceback", help="Show where an error arose, for bug reports."),
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and end.")
    ] = False,
) -> None:
    """Train on the samples that still teach the model, read only those, and keep the accuracy."""
