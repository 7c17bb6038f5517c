"""The few collective operations that scores and selection need, on numpy arrays."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

__all__ = ["Communicator", "SingleProcess", "TorchDistributed"]

Scalar = TypeVar("Scalar", bound=np.generic)

_SMALL = 1 << 20


class Communicator(Protocol):
    """Collectives among ``world_size`` ranks; every rank calls each of them, in the same order."""

    rank: int
    world_size: int

    def all_reduce_sum(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """The element-wise sum over ranks; the shape and dtype are the same on every rank."""
        ...

    def all_to_all(self, parts: Sequence[NDArray[Scalar]]) -> list[NDArray[Scalar]]:
        """Send ``parts[r]`` (1-D, any length) to rank r; what comes back is indexed by the sending rank."""
        ...

    def all_gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]]:
        """Every rank's 1-D array, of any length, indexed by rank."""
        ...

    def gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]] | None:
        """Every rank's 1-D array, of any length, indexed by rank, on rank 0; ``None`` on the others."""
        ...


class SingleProcess:
    """The communicator of a run without a process group."""

    rank = 0
    world_size = 1

    def all_reduce_sum(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """The values themselves."""
        return values

    def all_to_all(self, parts: Sequence[NDArray[Scalar]]) -> list[NDArray[Scalar]]:
        """The one part, back."""
        return list(parts)

    def all_gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]]:
        """The one array."""
        return [values]

    def gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]]:
        """The one array."""
        return [values]


class TorchDistributed:
    """The communicator of a torch process group.

    Tensors stay on the CPU where the group has a CPU backend (gloo; Composer initialises "cuda:nccl,cpu:gloo"), and
    travel over the current CUDA device where it has NCCL alone.

    Args:
        group: the data-parallel ranks; the default group where it is ``None``.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        backends = dist.get_backend_config(group)
        self._device = torch.device("cpu" if "gloo" in str(backends) else "cuda")

    def all_reduce_sum(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """(see Communicator)."""
        tensor = torch.from_numpy(values.copy()).to(self._device)
        if values.nbytes * self.world_size > _SMALL:
            dist.all_reduce(tensor, group=self.group)
            return tensor.cpu().numpy()
        # One exchange, where an all-reduce is a ring of several: gloo takes about 1 ms for each.
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor, group=self.group)
        return torch.stack(parts).sum(0, dtype=tensor.dtype).cpu().numpy()

    def all_to_all(self, parts: Sequence[NDArray[Scalar]]) -> list[NDArray[Scalar]]:
        """(see Communicator)."""
        sent = [len(part) for part in parts]
        counts = torch.empty(self.world_size, dtype=torch.int64, device=self._device)
        dist.all_to_all_single(counts, torch.tensor(sent, dtype=torch.int64, device=self._device), group=self.group)
        received = counts.tolist()
        outgoing = torch.from_numpy(np.concatenate(parts)).to(self._device)
        incoming = outgoing.new_empty(sum(received))
        dist.all_to_all_single(incoming, outgoing, received, sent, group=self.group)
        return np.split(incoming.cpu().numpy(), np.cumsum(received)[:-1])

    def all_gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]]:
        """(see Communicator)."""
        padded, lengths = self._padded(values)
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded, group=self.group)
        return _cut(gathered, lengths)

    def gather(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]] | None:
        """(see Communicator)."""
        padded, lengths = self._padded(values)
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)] if self.rank == 0 else None
        dist.gather(padded, gathered, group=self.group, group_dst=0)
        return None if gathered is None else _cut(gathered, lengths)

    def _padded(self, values: NDArray[Any]) -> tuple[torch.Tensor, list[int]]:
        """Collectives want equal shapes: the values, padded to the longest part, and the lengths of all parts."""
        mine = torch.from_numpy(values.copy()).to(self._device)
        counts = [torch.empty(1, dtype=torch.int64, device=self._device) for _ in range(self.world_size)]
        length = torch.tensor([len(values)], dtype=torch.int64, device=self._device)
        dist.all_gather(counts, length, group=self.group)
        lengths = [int(count) for count in counts]
        padded = mine.new_zeros(max(lengths))
        padded[: len(values)] = mine
        return padded, lengths


def _cut(parts: list[torch.Tensor], lengths: list[int]) -> list[NDArray[Any]]:
    return [tensor[:length].cpu().numpy() for tensor, length in zip(parts, lengths, strict=True)]
