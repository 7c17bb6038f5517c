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
    """Train once, as a config file says, and show what happened in one table."""
    from ted_stream.pipelines.training.settings import load_settings

    settings = load_settings(config, overrides or ())  # refused before the slow imports

    from ted_stream.cli.show import quiet, show_result

    quiet()
    from ted_stream.pipelines.training.train import train as run

    show_result(run(settings))
