"""Checkpoints of the loop: one file for all ranks, and a file that names the newest."""

from __future__ import annotations

import io
from typing import Any

import torch

from ted_stream.engine import Ranks
from ted_stream.files import join, read_bytes, write_bytes

from .settings import ConfigError

__all__ = ["CHECKPOINTS", "NEWEST", "load_checkpoint", "newest_checkpoint", "save_checkpoint"]

CHECKPOINTS = "checkpoints"  # the folder within that of a run
FORMAT = "ted-stream loop 1"
NEWEST = "newest"


def save_checkpoint(folder: str, name: str, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; every rank calls it, rank 0's state is written.

    Args:
        folder: local or a URI.
        name: of the file.
        state: tensors, numbers, text, and nestings of these.
    """

    def write() -> None:
        file = io.BytesIO()
        torch.save({"format": FORMAT, **state}, file)
        write_bytes(join(folder, name), file.getvalue())
        write_bytes(join(folder, NEWEST), name.encode())

    Ranks().on_rank_zero(write)


def newest_checkpoint(folder: str) -> str | None:
    """The path of a folder's newest checkpoint, if it has one."""

    def read() -> str | None:
        try:
            return join(folder, read_bytes(join(folder, NEWEST)).decode())
        except FileNotFoundError:
            return None

    return Ranks().on_rank_zero(read)


def load_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: the file is no checkpoint of the loop, of this format.
    """
    content = io.BytesIO(read_bytes(path))
    state: dict[str, Any] = {}
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
        found = state.get("format")
    except Exception as error:  # torch's own for other files share no base
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    if found != FORMAT:
        raise ConfigError(
            f"{path} is no checkpoint of format {FORMAT!r} (found: {found}); name one that trainer=loop wrote with "
            "this version, or set trainer=composer for one of Composer."
        )
    return state
