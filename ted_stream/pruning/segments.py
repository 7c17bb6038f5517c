"""Samples that share the rows of a packed batch: which tokens are whose."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Places", "Segments", "token_sums"]

Places = tuple[Tensor, Tensor]  # the tokens and lengths of Segments


@dataclass(frozen=True, eq=False)
class Segments:
    """The tokens of every sample of a packed batch, or of a microbatch of it.

    Args:
        owners: (R, S) int64, the place of a token's sample among the n samples, counted row by row; n for padding.
        tokens: (T,) int64, where the samples' tokens are in the R·S of all rows, sample by sample.
        lengths: (n,) int64, how many of them each sample has.
        before: (R + 1,) how many samples come before each row; the last is n.
        joined: whether a token has a target, which a causal model predicts from the token before, of another sample or
            of padding.
    """

    owners: Tensor
    tokens: Tensor
    lengths: Tensor
    before: tuple[int, ...]
    joined: bool

    @classmethod
    def of(cls, owners: Tensor, counts: Tensor, *, joined: bool) -> "Segments":
        """Of owners, on the CPU, in the order of their tokens, and how many samples each row has, (R,)."""
        samples = int(counts.sum())
        flat = owners.flatten()
        tokens = (flat < samples).nonzero().flatten()
        lengths = flat[tokens].bincount(minlength=samples)
        return cls(owners, tokens, lengths, (0, *counts.cumsum(0).tolist()), joined)

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
        owners, tokens, lengths = (
            tensor.to(device, non_blocking=True) for tensor in (self.owners, self.tokens, self.lengths)
        )
        return Segments(owners, tokens, lengths, self.before, self.joined)

    def refuse_joined(self) -> None:
        """Refuse samples whose losses hang on each other, under a causal model.

        Raises:
            ValueError: if a token is predicted from another sample, or from padding, or padding from a sample.
        """
        if self.joined:
            raise ValueError(
                "Samples are packed into rows, and the first token of one, or of the padding behind it, is a target, "
                "which the model predicts from the sample before it, or from padding: it is not known whose loss that "
                "is. Let its label be -100, as DataCollatorWithFlattening does."
            )

    def sums(self, values: Tensor) -> Tensor:
        """(n,) sums over each sample's tokens of (R, S) values; of bool int64."""
        dtype = torch.int64 if values.dtype is torch.bool else values.dtype
        return token_sums(values, self.tokens, self.lengths).to(dtype)

    def spread(self, values: Tensor) -> Tensor:
        """(R, S) for each token the (n,) value of its sample; 1 for padding."""
        return F.pad(values, (0, 1), value=1)[self.owners]


def token_sums(values: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """(n,) sums, in float64, over each sample's tokens of (R, S) values: the same in every run, on a GPU too."""
    # To check the lengths would wait for the device.
    return torch.segment_reduce(values.flatten()[tokens].double(), "sum", lengths=lengths, unsafe=True)
