"""Errors that a user can mend are shown as one message, not as a traceback."""

from typing import Any

import typer
from typer.core import TyperGroup

from ted_stream.extras import MissingExtraError, optional_imports

__all__ = ["Commands"]

MENDABLE = (ValueError, OSError, MissingExtraError)


class Commands(TyperGroup):
    """A command group that prints an error's message and ends with status 1, unless ``--traceback`` is given."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            with optional_imports():
                return super().invoke(ctx)
        except MENDABLE as error:
            if ctx.params.get("traceback"):
                raise
            from rich.console import Console
            from rich.text import Text

            Console(stderr=True).print(Text.assemble(("Error: ", "bold red"), _told(error)), soft_wrap=True)
            raise typer.Exit(1) from error


def _told(error: Exception) -> str:
    """Its message; where the system refused a file and nobody else has said more, which, why and what to look at."""
    if isinstance(error, OSError) and error.strerror is not None and error.filename is not None:
        return (
            f"{error.filename}: {error.strerror}. Check the path, that its parents are folders, and that you may read "
            "and write there."
        )
    return str(error)
