"""What a trained model is tested by: torchmetrics' classes, whatever trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from ..corpora.instructions import IGNORED

__all__ = ["CrossEntropy", "LanguageCrossEntropy"]


class CrossEntropy(Metric):
    """The mean cross entropy, in nats, over targets that are not -100."""

    full_state_update = False

    def __init__(self, **options: Any) -> None:
        """Take the options of every metric."""
        super().__init__(**options)
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (..., C).
            targets: (...), int64 classes, or -100.
        """
        logits, targets = logits.flatten(0, -2).float(), targets.flatten()
        self.total += cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        self.count += (targets != IGNORED).sum()

    def compute(self) -> Tensor:
        """The mean of all batches, (); NaN without targets."""
        return self.total / self.count


class LanguageCrossEntropy(CrossEntropy):
    """The mean over the target tokens."""
