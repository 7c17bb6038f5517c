"""A Communicator whose ranks are threads of this process, for tests of every world size without processes."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")
Scalar = TypeVar("Scalar", bound=np.generic)


class _Exchange:
    def __init__(self, world_size: int, timeout: float) -> None:
        self.barrier = threading.Barrier(world_size, timeout=timeout)
        self.slots: list[Any] = [None] * world_size


class ThreadCommunicator:
    """One rank of ``run_ranks``. It checks what a real backend leaves undefined: lockstep, equal shapes and dtypes."""

    def __init__(self, rank: int, world_size: int, exchange: _Exchange) -> None:
        self.rank = rank
        self.world_size = world_size
        self._exchange = exchange

    def _swap(self, operation: str, payload: Any) -> list[Any]:
        self._exchange.slots[self.rank] = (operation, payload)
        self._exchange.barrier.wait()
        slots = list(self._exchange.slots)
        self._exchange.barrier.wait()  # nobody overwrites a slot before all have read it
        operations = {name for name, _ in slots}
        assert len(operations) == 1, f"ranks are out of step: {operations}"
        return [value for _, value in slots]

    def all_reduce_sum(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """(see Communicator)."""
        parts = self._swap("all_reduce_sum", values.copy())
        assert len({(part.shape, part.dtype) for part in parts}) == 1, "all_reduce_sum of unequal arrays"
        return np.sum(np.stack(parts), axis=0, dtype=values.dtype)

    def all_to_all(self, parts: Sequence[NDArray[Scalar]]) -> list[NDArray[Scalar]]:
        """(see Communicator)."""
        assert len(parts) == self.world_size
        assert all(part.ndim == 1 for part in parts)
        sent = self._swap("all_to_all", [part.copy() for part in parts])
        assert len({part.dtype for row in sent for part in row}) == 1
        return [row[self.rank].copy() for row in sent]

    def all_gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]]:
        """(see Communicator)."""
        assert values.ndim == 1
        parts = self._swap("all_gather", values.copy())
        assert len({part.dtype for part in parts}) == 1
        return [part.copy() for part in parts]

    def gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]] | None:
        """(see Communicator)."""
        parts = self.all_gather(values)
        return parts if self.rank == 0 else None


def run_ranks(world_size: int, work: Callable[[ThreadCommunicator], Result], *, timeout: float = 20.0) -> list[Result]:
    """``work`` of every rank, in threads; results indexed by rank.

    An exception of any rank breaks the barrier under all others and is raised here; so does a rank that leaves the
    others waiting for longer than ``timeout`` seconds.
    """
    exchange = _Exchange(world_size, timeout)
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadCommunicator(rank, world_size, exchange))
        except BaseException as error:  # also pytest's Failed
            errors.append(error)
            exchange.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The victims of an abort see a broken barrier; the cause is the error that is none.
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        raise errors[0]
    return results


def owned_ids(num_samples: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The ids with ⌊id·W / N⌋ = rank, by that definition."""
    return np.array([i for i in range(num_samples) if i * world_size // num_samples == rank], np.int64)
