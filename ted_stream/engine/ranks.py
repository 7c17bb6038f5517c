"""The ranks that share one training set, and work that all of them depend on."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from ted_stream.engine.forks import watch_forks
from ted_stream.pruning import Communicator, SingleProcess, TorchDistributed

__all__ = ["Ranks"]

Result = TypeVar("Result")


class Ranks:
    """The ranks among which the samples of an epoch are shared out: a torch process group, or this process alone.

    Args:
        group: the data-parallel process group; torch's default one where it is ``None`` and one is initialised. With
            tensor or pipeline parallelism there are more ranks than are in it.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None) -> None:
        self.group = group
        self.communicator: Communicator = SingleProcess()
        if dist.is_available() and dist.is_initialized():
            self.communicator = TorchDistributed(group)
            watch_forks()  # DataLoaders start workers after what the ranks exchange at an epoch's boundary

    @property
    def rank(self) -> int:
        """Of this process in the group."""
        return self.communicator.rank

    @property
    def world_size(self) -> int:
        """Of the group."""
        return self.communicator.world_size

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, indexed by rank; collective."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def on_rank_zero(self, function: Callable[[], Result]) -> Result:
        """Call a function on rank 0 and give every rank its result; collective.

        Raises:
            Exception: what the function raised, on rank 0.
            RuntimeError: with its message, on the other ranks.
        """
        error: Exception | None = None
        outcome: list[Result | str | None] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except Exception as raised:
                error, outcome[1] = raised, _described(raised)
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, group=self.group, group_src=0)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise RuntimeError(f"Rank 0 failed: {outcome[1]}")
        return outcome[0]  # pyright: ignore[reportReturnType]

    def on_every_rank(self, function: Callable[[], Result]) -> Result:
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
        messages = self.gather_objects(None if error is None else _described(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RuntimeError(f"Rank {rank} failed: {message}")
        return result  # pyright: ignore[reportReturnType]


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
