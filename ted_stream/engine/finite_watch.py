"""Whether what is measured is finite, looked at within an epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["WINDOW", "FiniteWatch"]

WINDOW = 24  # batches; a gradient scaler comes down from 2^16 to 1 in 16 steps
_EVERY = 8  # batches, after which the device has come to what it was asked before


class FiniteWatch:
    """Tells of windows of batches in which nothing finite was measured.

    The device looks at a window, and copies its answer to the host, behind the step that ends it; that is read some
    batches later, so that no step waits for a device that keeps up. The same batch tells it on every rank.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """An epoch begins, or the rest of one."""
        self._has_finite: Tensor | None = None
        self._copied: torch.Event | None = None

    def finds_none(self, values: Sequence[Tensor]) -> bool:
        """Whether a window that has ended measured nothing finite; to be asked after every batch.

        Args:
            values: (B,) floats for each of the epoch's batches so far, on the device.
        """
        if len(values) % _EVERY:
            return False
        if self._copied is not None:
            self._copied.synchronize()
        finds_none = self._has_finite is not None and not self._has_finite
        if len(values) >= WINDOW:
            found = torch.cat(list(values[-WINDOW:])).float().isfinite().any()  # scores are float32
            self._has_finite = found.to("cpu", non_blocking=True)
            if not found.is_cpu:
                self._copied = torch.Event(found.device)
                self._copied.record()
        return finds_none
