"""``ted-stream train``."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Settings that replace the file's.", show_default=False),
    ] = None,
) -> None:
    """Train once, as a config file says, and show what happened in one table.

    While it trains, a line per epoch tells what was kept and saved (progress_bar=false leaves it out).

    For example: ted-stream train configs/quickstart.yaml pruning.method=ted pruning.prune_ratio=0.5
    """
    from ted_stream.pipelines.training.settings import load_settings

    settings = load_settings(config, overrides or ())  # refused before the slow imports

    from contextlib import nullcontext

    from ted_stream.cli.show import let_one_speak, quiet, show_epochs, show_result

    quiet()
    let_one_speak()
    from ted_stream.pipelines.training.train import train as run

    with show_epochs() if settings.progress_bar else nullcontext():
        result = run(settings)
    show_result(result)
