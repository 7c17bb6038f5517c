"""Streaming samples for the tests of the loop."""

from typing import Any

import torch

from ted_stream import PrunedStreamingDataset


class Streamed(PrunedStreamingDataset):
    """(x, y) samples of float64."""

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return torch.from_numpy(sample["x"].copy()).double(), sample["y"]
