"""From token samples to a padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from ..corpora.instructions import IGNORED

__all__ = ["PaddingCollator"]


@dataclass(frozen=True)
class PaddingCollator:
    """Pad dict samples on the right to the longest of the batch.

    Attributes:
        pad_id: the token that fills ``input_ids``; ``labels`` are filled with -100, ``attention_mask`` with 0.
    """

    pad_id: int

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            samples: each with ``input_ids`` and ``labels`` (n,). Entries that are not known here, such as
                ``sample_id``, are collated as torch does by default.

        Returns:
            ``input_ids``, ``labels`` and ``attention_mask``, (samples, longest) int64, and the other entries.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        shape = len(samples), max(lengths)
        input_ids = np.full(shape, self.pad_id, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            input_ids[row, :length] = sample["input_ids"]
            labels[row, :length] = sample["labels"]
            mask[row, :length] = 1
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.from_numpy(mask),
        }
        for name in samples[0].keys() - batch.keys():
            batch[name] = default_collate([sample[name] for sample in samples])
        return batch
