"""The arguments of a loop's pruner."""

from torch import nn

from ted_stream.engine.plan import RunPlan
from ted_stream.methods import Method
from ted_stream.pruning.settings import check_choice, check_flag, check_whole

__all__ = ["at_least_one", "check_run"]


def check_run(method: object, model: object, progress: str, allow_other_settings: object) -> None:
    """Refuse arguments that are none.

    Raises:
        TypeError: for one of another type.
        ValueError: for another progress than there is, or one that the method cannot have.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method is {method!r}, but it must be a pruning method, for example TED(prune_ratio=0.7).")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, but it must be the nn.Module that the loop calls.")
    check_flag("allow_other_settings", allow_other_settings, fix="whether to resume what other settings made.")
    if check_choice("progress", progress, ("epochs", "samples")) == "samples":
        RunPlan(method=method, num_samples=1, epochs=2).forecast({})  # refuses what is not known in advance


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
