"""The ``ted-stream`` command."""

import sys

from ted_stream.extras import MissingExtraError, optional_imports

__all__ = ["main"]


def main() -> None:
    """Run the command, or say in one line what must be installed for it."""
    try:
        with optional_imports():
            from ted_stream.cli.commands import app
    except MissingExtraError as error:
        sys.exit(f"Error: {error}")
    app(prog_name="ted-stream")  # by which shells complete it
