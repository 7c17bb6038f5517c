"""Reads pruned epochs in processes that are killed: run by the tests, since only a process without threads may fork."""

import os
import signal
import sys
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset, SkipList


def open_dataset(remote: str, cache: str, keep: str, **arguments: Any) -> PrunedStreamingDataset:
    """A dataset of which the mask in the file ``keep`` is active."""
    dataset = PrunedStreamingDataset(
        remote=remote, local=cache, batch_size=4, shuffle=True, request_latency=1024, min_gap=1024, **arguments
    )
    mask = np.load(keep)
    skip_list = SkipList.from_keep_mask(dataset.layout, mask, epoch=0, keep_ratio=0.5, method="test", run="test")
    dataset.activate(skip_list, sample_ids=False)
    return dataset


def read_until_killed(remote: str, cache: str, keep: str, writes: int) -> None:
    """Read an epoch; be killed in the middle of a write."""
    real, left = os.pwrite, [writes]

    def pwrite(file: int, data: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            real(file, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(file, data, offset)

    os.pwrite = pwrite  # pyright: ignore[reportAttributeAccessIssue]
    list(open_dataset(remote, cache, keep))


def main() -> None:
    what, remote, cache, keep, *rest = sys.argv[1:]
    if what == "workers":  # one of which the caller kills
        dataset = open_dataset(remote, cache, keep, download_timeout=20)
        list(DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=list))
        return
    for writes in map(int, rest):
        child = os.fork()
        if not child:
            try:
                read_until_killed(remote, cache, keep, writes)
            finally:
                os._exit(1)  # it was to be killed before
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the process that was to be killed at write {writes} ended by itself"
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main()
