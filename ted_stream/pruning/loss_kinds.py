"""How a loss makes one number of its samples' losses: read off the first microbatch."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ted_stream.pruning.batches import (
    loss_shares,
    map_tensors,
    per_sample_cross_entropy,
    take_rows,
    targets_of,
    tensors_of,
    total_loss,
)

__all__ = ["LossFunction", "LossReading", "holds_loss", "read_loss"]

LossFunction = Callable[[Any, Any], Any]
_ROWS = 8
_FEW = 1 << 24
_HALVES = (torch.bfloat16, torch.float16)


@dataclass
class LossReading:
    """What the first microbatch shows; tensors on the device until :meth:`settle` has looked at them.

    Args:
        value: () the loss of some samples together.
        mean: () what it would be as a mean over samples (over all tokens).
        total: () what it would be as a sum.
        by_itself: whether mean and total are of the loss function's own values on single samples, so that they must
            fit; else of the cross-entropies of the logits.
        is_sum: () whether it is a sum.
        is_comparable: whether there is a mean and a total to compare it with.
        is_cross_entropy: () whether the samples' losses are the cross-entropies of the logits.
        refusal: why the samples' own losses cannot be had, in case they are not cross-entropies.
    """

    value: Tensor
    mean: Tensor
    total: Tensor
    by_itself: bool
    is_sum: Tensor | bool
    is_cross_entropy: Tensor | bool
    is_comparable: bool = True
    refusal: ValueError | None = None

    def settle(self) -> None:
        """Look at the values, which waits for the device.

        Raises:
            ValueError: if the loss function's value of several samples is neither the mean nor the sum of theirs, or
                their own losses were asked for and cannot be had.
        """
        self.is_sum, self.is_cross_entropy = bool(self.is_sum), bool(self.is_cross_entropy)
        if self.refusal is not None and not self.is_cross_entropy:
            raise self.refusal
        value, mean, total = (float(number) for number in (self.value, self.mean, self.total))
        if not self.is_comparable or not math.isfinite(value) or not math.isfinite(mean):
            warnings.warn(
                "Whether the loss is a mean over samples cannot be told from the outputs and the targets of the first "
                "microbatch; scores are taken as from a mean. From a sum they would hang on the batch's size, from a "
                "class-weighted mean on the class. Give the loss function, or choose a measure that does not need it, "
                "such as ErrorNorm.",
                stacklevel=2,
            )
            return
        tolerance = _tolerance(self.value.dtype)
        if any(abs(value - fitting) <= tolerance * abs(fitting) + 1e-6 for fitting in (mean, total)):
            return
        seen = f"Together, samples of the first microbatch have a loss of {value:.6g}; "
        if self.by_itself:
            raise ValueError(
                f"{seen}the mean of their own losses is {mean:.6g} and the sum {total:.6g}. A loss that is neither "
                "weighs samples by something else (class weights, other samples of the batch), which their scores "
                "would mirror. Let the loss be a plain mean over samples, or choose a measure that does not need it, "
                "such as ErrorNorm."
            )
        warnings.warn(
            f"{seen}the mean of their cross-entropies is {mean:.6g} and the sum {total:.6g}. It is taken for a "
            f"{'sum' if self.is_sum else 'mean'} all the same, as with smoothed labels; under class weights scores "
            "would mirror the class. Give the loss function, or choose a measure that does not need it, such as "
            "ErrorNorm.",
            stacklevel=2,
        )


def _tolerance(dtype: torch.dtype) -> float:
    return 0.02 if dtype in _HALVES else 1e-3


def _rounding(dtype: torch.dtype) -> float:
    """Within which two ways to compute the same loss agree."""
    return 0.02 if dtype in _HALVES else 1e-9 if dtype is torch.float64 else 1e-5


def _in_float32(tree: Any) -> Any:
    return map_tensors(tree, lambda tensor: tensor.float() if tensor.dtype in _HALVES else tensor)


def holds_loss(outputs: Any) -> bool:
    """Whether the model computed the loss itself, so that a loss function merely hands out what is there."""
    return any(tensor.ndim == 0 and tensor.requires_grad for tensor in tensors_of(outputs))


def _rows_to_compare(batch: Any, size: int) -> Tensor:
    """(n,) indices, n ≥ 2, of different classes where there are some; a single sample stands for two."""
    device = tensors_of(batch)[0].device
    count = max(2, min(size, _ROWS))
    places = torch.linspace(0, size - 1, count, device=device).long()
    try:
        targets = targets_of(batch)
    except ValueError:
        return places
    return targets.argsort()[places] if targets.ndim == 1 and len(targets) == size else places


def _cross_entropies(outputs: Any, batch: Any, *, shifted: bool) -> Tensor | None:
    try:
        return per_sample_cross_entropy(outputs, batch, shifted=shifted)
    except ValueError:  # no class targets
        return None


@torch.no_grad()
def read_loss(
    function: LossFunction | None, outputs: Any, batch: Any, loss: Tensor, size: int, *, shifted: bool
) -> LossReading:
    """Compare a loss of several samples with the mean and the sum of their own, without a look at the values.

    By the loss function on up to 8 rows of the outputs, alone and together; where there is none, or the model
    computes its loss itself, by the cross-entropies of the logits.

    Args:
        function: the model's loss of (outputs, batch).
        outputs: of the first microbatch.
        batch: the first microbatch.
        loss: () what is about to be differentiated.
        size: B, its samples.
        shifted: whether labels are shifted.
    """
    if function is None or holds_loss(outputs):
        losses = _cross_entropies(outputs, batch, shifted=shifted)
        if losses is None or targets_of(batch).is_floating_point():  # maybe probabilities, maybe something else
            value = loss.detach()
            return LossReading(value, value, value, False, False, losses is not None, is_comparable=False)
        own, all_ = loss_shares(batch, shifted=shifted)
        total = (own * losses).sum()
        mean, value = total / all_, loss.detach()
        # Half-way between the two, as factors go: smoothed labels make a loss larger, but not as much as a sum is.
        return LossReading(value, mean, total, False, value * value > mean * total, True)

    rows = _rows_to_compare(batch, size)
    together = take_rows((outputs, batch), rows, size)
    alone = [take_rows((outputs, batch), row, size) for row in rows.split(1)]
    if sum(tensor.numel() for tensor in tensors_of(together)) <= _FEW:  # then rounding blurs nothing
        together, alone = _in_float32(together), _in_float32(alone)
    devices = [loss.device] if loss.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # a loss that draws is not to draw more for being looked at
        value = total_loss(function(*together)).detach()
        singles = [total_loss(function(*one)).detach() for one in alone]
    losses = torch.stack([single.sum() for single in singles])
    losses = losses.where(~losses.isnan(), 0)  # the mean over no targets, of a sample that has none
    own, all_ = loss_shares(together[1], shifted=shifted)
    mean, total = (own * losses).sum() / all_, losses.sum()
    value = value.mean() if value.ndim else value  # a vector, that the trainer takes the mean of
    is_sum = (value - total).abs() < (value - mean).abs()
    plain = _cross_entropies(*together, shifted=shifted)
    if plain is None:
        return LossReading(value, mean, total, True, is_sum, False)
    bound = _rounding(value.dtype) * (plain.abs() + 1)
    is_mean_of_own = (losses - plain).abs().le(bound).all()
    is_sum_of_own = (losses - own * plain).abs().le(bound * own).all()
    return LossReading(value, mean, total, True, is_sum, is_mean_of_own | is_sum_of_own)
