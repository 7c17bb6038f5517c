"""Random generators of a process."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["seed_all"]


def seed_all(seed: int) -> None:
    """Seed those of Python, NumPy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the one that users' code draws from
    torch.manual_seed(seed)
