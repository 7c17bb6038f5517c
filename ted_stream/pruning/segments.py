"""Samples that share the rows of a packed batch: which tokens are whose."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Segments", "gathered"]


@dataclass(frozen=True, eq=False)
class Segments:
    """The tokens of every sample of a packed batch, or of a microbatch of it.

    Args:
        owners: (R, S) int64, the place of a token's sample among the n samples, counted row by row; n for padding.
        places: (n, L) int64, where each sample's tokens are in the R·S of all rows, R·S behind a shorter sample's last.
        before: (R + 1,) how many samples come before each row; the last is n.
        joined: whether a sample that follows another in its row has a target at its first token, which a causal model
            predicts from the sample before.
    """

    owners: Tensor
    places: Tensor
    before: tuple[int, ...]
    joined: bool

    @classmethod
    def of(cls, owners: Tensor, counts: Tensor, *, joined: bool) -> "Segments":
        """Of owners, on the CPU, and how many samples each row has, (R,)."""
        samples = int(counts.sum())
        flat = owners.flatten()
        tokens = (flat < samples).nonzero().flatten()
        lengths = flat[tokens].bincount(minlength=samples)
        within = torch.arange(len(tokens)) - (lengths.cumsum(0) - lengths)[flat[tokens]]
        places = torch.full((samples, int(lengths.max())), len(flat))
        places[flat[tokens], within] = tokens
        return cls(owners, places, (0, *counts.cumsum(0).tolist()), joined)

    @property
    def rows(self) -> int:
        """How many rows, R."""
        return len(self.owners)

    @property
    def samples(self) -> int:
        """How many samples, n."""
        return self.before[-1]

    def of_rows(self, rows: slice) -> "Segments":
        """Those of some rows, in order."""
        before = self.before[rows.start : rows.stop + 1]
        owners = (self.owners[rows] - before[0]).clamp(max=before[-1] - before[0])
        return Segments.of(owners, torch.tensor(before).diff(), joined=self.joined)

    def to(self, device: torch.device) -> "Segments":
        """The same on a device."""
        owners, places = (tensor.to(device, non_blocking=True) for tensor in (self.owners, self.places))
        return Segments(owners, places, self.before, self.joined)

    def refuse_joined(self) -> None:
        """Refuse samples whose losses hang on each other, under a causal model.

        Raises:
            ValueError: if a first token is predicted from the sample before.
        """
        if self.joined:
            raise ValueError(
                "Samples are packed into rows, and the first token of one is a target, which the model predicts from "
                "the sample before it: the loss of one hangs on the other. Let its label be -100, as "
                "DataCollatorWithFlattening does."
            )

    def sums(self, values: Tensor) -> Tensor:
        """(n,) sums over each sample's tokens of (R, S) values."""
        return gathered(values, self.places).sum(1)

    def spread(self, values: Tensor) -> Tensor:
        """(R, S) for each token the (n,) value of its sample; 1 for padding."""
        return F.pad(values, (0, 1), value=1)[self.owners]


def gathered(values: Tensor, places: Tensor) -> Tensor:
    """(n, L) of (R, S) values, 0 behind a sample's last: sums over axis 1 are the same in every run, on a GPU too."""
    return F.pad(values.flatten(), (0, 1))[places]
