"""What an extra brings is imported where it is used; where it is missing, the error says what to install."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXTRAS", "MissingExtraError", "optional_imports"]

EXTRAS = {
    "cli": ("rich", "typer"),
    "composer": ("composer",),
    "foundry": ("llmfoundry",),
    "pipelines": (
        *("PIL", "datasets", "jinja2", "matplotlib", "omegaconf", "peft", "scipy", "sklearn", "tokenizers"),
        *("safetensors", "torchmetrics", "torchvision"),
    ),
    "transformers": ("accelerate", "transformers"),
    "webdataset": ("braceexpand", "webdataset"),
}
"""The modules that each extra brings."""


class MissingExtraError(ImportError):
    """A module that an extra of this package brings is not installed."""


@contextmanager
def optional_imports() -> Iterator[None]:
    """Around imports of what an extra brings, or code that makes them.

    Raises:
        MissingExtraError: if it is not installed, naming the extra and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        for extra, modules in EXTRAS.items():
            if missing in modules:
                raise MissingExtraError(
                    f"{missing} is not installed; it comes with the extra {extra!r} of ted-stream. Install that: "
                    f'pip install "ted-stream[{extra}]"',
                    name=missing,
                ) from error
        raise
