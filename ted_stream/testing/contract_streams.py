"""The samples of a run that reads shards."""

from typing import Any

import numpy as np

from ted_stream.reading import PrunedStreamingDataset
from ted_stream.testing.contract_parts import noise

__all__ = ["Streamed"]


class Streamed(PrunedStreamingDataset):
    """(x, y) samples from the shards of a folder, or the same as a mapping; with noise, where that is seeded.

    Attributes:
        names: of x and y in a mapping; ``None``: none.
        double: whether x is float64.
    """

    names: tuple[str, str] | None = None
    double = False

    def __getitem__(self, at: Any) -> Any:
        """The sample."""
        sample = super().__getitem__(at)
        x = sample["x"].astype(np.float64) if self.double else sample["x"]
        pair = x + x.dtype.type(noise()) if self.seed_samples else x, sample["y"]
        return pair if self.names is None else dict(zip(self.names, pair, strict=True))
