"""What a model predicts about class targets, position by position, reduced to one number per sample."""

from collections.abc import Callable

import torch
from torch import Tensor

from ted_stream.pruning.segments import Segments

__all__ = ["IGNORE_INDEX", "Predictions"]

IGNORE_INDEX = -100
_CHUNK = 1 << 24  # logits that are widened at a time


class Predictions:
    """Logits with the classes last beside the targets that they are scored against.

    Args:
        logits: (B, C); for several targets per sample (B, S, C), or with the classes second, (B, C, S) or (B, C, H, W).
        targets: int64 classes (B,), (B, S) or (B, H, W), -100 where none counts; class probabilities (B, C); or
            ``None``, for what needs no targets, of (B, C) logits.
        shifted: whether position i predicts target i + 1, so that a row's first target does not count.
        segments: where samples share rows; the targets are (R, S) then, and logits (R, S, C).

    Raises:
        ValueError: if the shapes do not fit each other, or there are fewer than two classes.
    """

    def __init__(
        self, logits: Tensor, targets: Tensor | None, *, shifted: bool, segments: Segments | None = None
    ) -> None:
        logits = logits.detach()
        if targets is None:
            fits = logits.ndim == 2
            targets = torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device)
        elif targets.is_floating_point():
            fits = logits.ndim == 2 and targets.shape == logits.shape
        else:
            targets = targets.long()  # which of bytes is a copy
            classes_last = logits.shape[:-1] == targets.shape
            if not classes_last and logits.ndim > 2:
                logits = logits.movedim(1, -1)
            fits = logits.shape[:-1] == targets.shape
        if not fits or logits.shape[-1] < 2:
            raise ValueError(
                f"The outputs have shape {tuple(logits.shape)} and the targets {_described(targets)}, which are not "
                "the logits of two or more classes and the classes (or, for outputs (B, C), their probabilities) that "
                "they are scored against. For other losses give the loss function, or choose the measure "
                "MaskGradient, which asks for no classes."
            )
        self.are_probabilities = targets.is_floating_point()
        if shifted and targets.ndim > 1 and not self.are_probabilities:
            # Moving the targets leaves the logits what they are; a slice of them would be copied as a whole.
            targets = torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], IGNORE_INDEX)], 1)
        self.logits = logits
        self.targets = targets
        self.segments = segments

    def means(self, function: Callable[[Tensor, Tensor], Tensor], scale: Tensor | None = None) -> Tensor:
        """Mean of a function of one position over each sample's own counted targets; 0 for a sample without any.

        Takes 2^24 logits at a time, so what is widened and computed on the way stays at a few buffers of 64 MB
        (128 MB in float64), beside one number per position. Logits with the classes second are copied a sample (or
        as many samples as make 2^24 logits) at a time.

        Args:
            function: of logits (M, C), float32 (float64 for float64 logits), and targets, (M,) int64 or (M, C);
                gives (M,). Where no target counts it is asked about class 0, and its answer is dropped.
            scale: factors of the positions, (B,) or (B, S).

        Returns:
            (B,) float32 (float64 for float64 logits), or (n,) where samples share rows.
        """
        size, classes = self.logits.shape[0], self.logits.shape[-1]
        positions = self.logits[0, ..., 0].numel() if size else 1
        samples = max(1, _CHUNK // (positions * classes))
        wide = torch.float64 if self.logits.dtype is torch.float64 else torch.float32
        values = [torch.empty(0, dtype=wide, device=self.logits.device)]
        for some_logits, some_targets in zip(self.logits.split(samples), self.targets.split(samples), strict=True):
            targets = some_targets if self.are_probabilities else some_targets.flatten().clamp(min=0)
            rows = some_logits.reshape(-1, classes).split(max(1, _CHUNK // classes))
            for z, y in zip(rows, targets.split(max(1, _CHUNK // classes)), strict=True):
                values.append(function(z.to(wide), y))
        value = torch.cat(values)
        if scale is not None:
            value = value * scale.flatten()
        if self.are_probabilities:
            return value
        counted = self.targets.ne(IGNORE_INDEX).view(size, positions)
        value = value.view(size, positions).where(counted, 0)
        if self.segments is not None:
            return self.segments.sums(value) / self.segments.sums(counted).clamp(min=1)
        return value.sum(1) / counted.sum(1).clamp(min=1)


def _described(targets: Tensor) -> str:
    return f"{tuple(targets.shape)} of {targets.dtype}"
