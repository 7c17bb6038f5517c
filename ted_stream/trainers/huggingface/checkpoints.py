"""The state of a pruned run beside what the Trainer writes into a checkpoint's folder."""

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["has_checkpoints", "read_state", "state_path"]


def state_path(checkpoint: str) -> str:
    """The file of the state in a checkpoint's folder."""
    return os.path.join(checkpoint, "pruning.pt")


def has_checkpoints(output_dir: str) -> bool:
    """Whether a folder of the Trainer's has a checkpoint of a pruned run."""
    return any(Path(output_dir).glob("checkpoint-*/pruning.pt"))


def read_state(checkpoint: str) -> dict[str, Any]:
    """The state in a checkpoint's folder.

    Raises:
        ValueError: if there is none, or the Trainer did not finish the checkpoint.
    """
    path = state_path(checkpoint)
    missing = [name for name in (path, os.path.join(checkpoint, "trainer_state.json")) if not os.path.isfile(name)]
    if missing:
        raise ValueError(
            f"The checkpoint {checkpoint} has no {os.path.basename(missing[0])}: it was made without PruningMixin, "
            "with save_only_model=True, or was not finished when its run was killed. Resume "
            "from a checkpoint before it, or start a new run from its weights."
        )
    return torch.load(path, map_location="cpu", weights_only=True)
