"""The arguments of a loop's pruner."""

from datetime import datetime
from secrets import token_hex

from torch import nn

from ted_stream.pruning.settings import check_whole

__all__ = ["at_least_one", "check_model", "new_run_name"]


def check_model(model: object) -> None:
    """Refuse what a loop cannot call as a model.

    Raises:
        TypeError: if it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, but it must be the nn.Module that the loop calls.")


def at_least_one(name: str, value: object, *, fix: str) -> int:
    """A whole number from 1 on.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is less.
    """
    whole = check_whole(name, value, fix=fix)
    if whole < 1:
        raise ValueError(f"{name} is {whole}, but must be at least 1: {fix}")
    return whole


def new_run_name() -> str:
    """The time, and digits by which jobs that begin in the same second are runs of their own."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}"
