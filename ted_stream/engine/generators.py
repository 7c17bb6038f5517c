"""The random generators of every rank, as plain tensors and numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ted_stream.engine.ranks import Ranks

__all__ = ["get_generators", "preserved_generators", "seed_generators", "set_generators"]


def _get() -> dict[str, Any]:
    """The states of this process: Python's, NumPy's, torch's on the CPU and on the current CUDA device."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def get_generators(ranks: Ranks) -> list[dict[str, Any]]:
    """The states of all ranks, indexed by rank; collective."""
    return ranks.gather_objects(_get())


def set_generators(states: list[dict[str, Any]], ranks: Ranks) -> None:
    """Restore this rank's generators; on a rank that the states do not know they stay as they are."""
    if ranks.rank < len(states):
        _set(states[ranks.rank])


def seed_generators(seed: int) -> None:
    """Seed those of this process, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Leave this process' generators as they were."""
    state = _get()
    try:
        yield
    finally:
        _set(state)
