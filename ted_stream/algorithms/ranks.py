"""Work that all ranks depend on, done so that an error on one of them does not leave the others waiting."""

from collections.abc import Callable
from typing import TypeVar

from composer.utils import dist

__all__ = ["on_every_rank", "on_rank_zero"]

Result = TypeVar("Result")


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 and give every rank its result; collective.

    Raises:
        Exception: what the function raised, on rank 0.
        RuntimeError: with its message, on the other ranks.
    """
    error: Exception | None = None
    outcome: list[Result | str | None] = [None, None]
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = function()
        except Exception as raised:
            error, outcome[1] = raised, _described(raised)
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise RuntimeError(f"Rank 0 failed: {outcome[1]}")
    return outcome[0]  # pyright: ignore[reportReturnType]


def on_every_rank(function: Callable[[], Result]) -> Result:
    """Call a function on every rank, and go on when all of them have; collective.

    Raises:
        Exception: what the function raised on this rank.
        RuntimeError: with the message of the first rank that failed, on ranks where it did not.
    """
    error: Exception | None = None
    result: Result | None = None
    try:
        result = function()
    except Exception as raised:
        error = raised
    messages = dist.all_gather_object(None if error is None else _described(error))
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(f"Rank {rank} failed: {message}")
    return result  # pyright: ignore[reportReturnType]


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
