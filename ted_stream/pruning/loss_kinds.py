"""How a loss makes one number of its samples' losses: read off the first microbatch."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ted_stream.pruning.batches import (
    logits_of,
    loss_shares,
    map_tensors,
    per_sample_cross_entropy,
    take_rows,
    targets_of,
    tensors_of,
    total_loss,
    within_classes,
)
from ted_stream.pruning.segments import Segments

__all__ = [
    "FEW",
    "Counted",
    "LossFunction",
    "LossReading",
    "Rows",
    "are_cross_entropies",
    "are_no_probabilities",
    "holds_loss",
    "in_float32",
    "match",
    "read_rows",
    "read_value",
    "tolerance",
]

LossFunction = Callable[[Any, Any], Any]
_ROWS = 8
FEW = 1 << 24  # values, that may be widened
_SAME = 1e-3  # relatively; rounding comes to less, another count of targets to more
_FAR = 0.1  # relatively; auxiliary terms of a loss come to less
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Counted:
    """What a trainer that counts targets itself, over several microbatches and ranks, does to the loss or asks of it.

    Args:
        divisor: () float, by what the loss is to divide the sum over the microbatch's targets, all told.
        multiplier: by what the trainer multiplies the loss afterwards, whether or not it has divided by that.
        is_likely: whether the loss is taken to divide by it where its value does not tell, and for a mean otherwise.
    """

    divisor: Tensor
    multiplier: int = 1
    is_likely: bool = True


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
        divided: () what it would be as a sum divided by what the trainer counted, where it counts targets itself.
        is_divided: () whether it is that.
        multiplied: () what it would be as a mean that the trainer has multiplied, where it does.
        is_multiplied: () whether it is that.
        is_comparable: () whether there is a mean and a total to compare it with.
        is_cross_entropy: () whether the samples' losses are the cross-entropies of the logits.
        refusal: why the samples' own losses cannot be had, in case they are not cross-entropies.
    """

    value: Tensor
    mean: Tensor
    total: Tensor
    by_itself: bool
    is_sum: Tensor | bool
    is_cross_entropy: Tensor | bool
    divided: Tensor | None = None
    is_divided: Tensor | bool = False
    multiplied: Tensor | None = None
    is_multiplied: Tensor | bool = False
    is_comparable: Tensor | bool = True
    refusal: ValueError | None = None

    def divisor_of(self, own: Tensor | int, counted: Counted | None) -> Tensor | int:
        """By what the loss of a microbatch divides the sum over its targets; does not wait for the device.

        Args:
            own: the microbatch's count, by which a mean divides.
            counted: the trainer's.
        """
        kinds: list[tuple[Tensor | bool, Tensor | int]] = [(self.is_sum, 1)]
        if counted is not None:
            kinds += [(self.is_divided, counted.divisor), (self.is_multiplied, own / counted.multiplier)]
        divisor = own
        for holds, other in kinds:
            if holds is not False:
                divisor = torch.where(holds, other, divisor) if isinstance(holds, Tensor) else other
        return divisor

    @property
    def _fitting(self) -> list[float]:
        """What the value may be."""
        kinds = (self.mean, self.total, self.divided, self.multiplied)
        return [float(number) for number in kinds if number is not None]

    def settle(self) -> None:
        """Look at the values, which waits for the device.

        Raises:
            ValueError: if the loss function's value of several samples is neither the mean nor the sum of theirs, or
                their own losses were asked for and cannot be had.
        """
        self.is_sum, self.is_cross_entropy = bool(self.is_sum), bool(self.is_cross_entropy)
        self.is_comparable = bool(self.is_comparable)
        self.is_divided, self.is_multiplied = bool(self.is_divided), bool(self.is_multiplied)
        if self.refusal is not None and not self.is_cross_entropy:
            raise self.refusal
        value, mean, total = (float(number) for number in (self.value, self.mean, self.total))
        if not math.isfinite(value):
            warnings.warn(
                f"The loss of the first microbatch is {value}, and whether it is a mean over samples cannot be told; "
                "scores are taken as from a mean. If it stays so, the samples or the weights hold what is no number, "
                "or the loss overflows: look at them, lower the learning rate, or train in another precision.",
                stacklevel=2,
            )
            return
        if not self.is_comparable or not math.isfinite(mean):
            warnings.warn(
                "Whether the loss is a mean over samples cannot be told from the outputs and the targets of the first "
                "microbatch; scores are taken as from a mean. From a sum they would hang on the batch's size, from a "
                "class-weighted mean on the class. Give the loss function, or choose a measure that does not need it, "
                "such as ErrorNorm.",
                stacklevel=2,
            )
            return
        bound = tolerance(self.value.dtype)
        if any(abs(value - fitting) <= bound * abs(fitting) + 1e-6 for fitting in self._fitting):
            return
        seen = f"Together, samples of the first microbatch have a loss of {value:.6g}; "
        if self.by_itself:
            raise ValueError(
                f"{seen}the mean of their own losses is {mean:.6g} and the sum {total:.6g}. A loss that is neither "
                "weighs samples by something else (class weights, other samples of the batch, targets that it leaves "
                "out though they are not -100, or shifts without model.shift_labels = True), which their scores would "
                "mirror. Let the loss be a plain mean over samples (over all tokens), or give it as a vector, a loss "
                "per sample; or choose a measure that does not need it, such as ErrorNorm."
            )
        warnings.warn(
            f"{seen}the mean of their cross-entropies is {mean:.6g} and the sum {total:.6g}. It is taken for a "
            f"{'sum' if self.is_sum else 'mean'} all the same, as with smoothed labels; under class weights scores "
            "would mirror the class. Give the loss function, or choose a measure that does not need it, such as "
            "ErrorNorm.",
            stacklevel=2,
        )

    def refuse_other_losses(self) -> None:
        """Refuse a loss that the cross-entropies of the logits cannot stand for; waits for the device.

        Raises:
            ValueError: if it is known by its value alone, and that is far from theirs.
        """
        value, mean, total = (float(number) for number in (self.value, self.mean, self.total))
        near = any(abs(value - fitting) <= _FAR * abs(fitting) for fitting in self._fitting)
        if self.by_itself or near or not math.isfinite(value) or not math.isfinite(mean):
            return
        raise ValueError(
            f"The first microbatch has a loss of {value:.6g}, but the cross-entropies of the logits and the targets "
            f"that were found have a mean of {mean:.6g} and a sum of {total:.6g}: the loss is made of something else, "
            "and scores would be too. Let the model return the logits, and the batch hold their classes as 'labels' "
            "or its second element; or give the loss function, or choose the measure MaskGradient, which asks for "
            "neither."
        )


def tolerance(dtype: torch.dtype) -> float:
    """Within which a loss fits what it may be, relatively."""
    return 0.02 if dtype in _HALVES else 1e-3


def _rounding(dtype: torch.dtype) -> float:
    """Within which two ways to compute the same loss agree."""
    return 0.02 if dtype in _HALVES else 1e-9 if dtype is torch.float64 else 1e-5


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor, widened where it is of half precision."""
    return tensor.float() if tensor.dtype in _HALVES else tensor


def holds_loss(outputs: Any) -> bool:
    """Whether the model computed the loss itself, so that a loss function merely hands out what is there."""
    return any(tensor.ndim == 0 and tensor.requires_grad for tensor in tensors_of(outputs))


@dataclass(frozen=True)
class Rows:
    """A few rows of a microbatch, to evaluate a loss function on; without a graph, and widened where they are halves.

    Evaluating leaves the random generators as they are: a loss that draws is not to draw more for being looked at.

    Args:
        outputs: of the model.
        batch: what they were made of.
        size: n.
        shifted: whether labels are shifted.
    """

    outputs: Any
    batch: Any
    size: int
    shifted: bool

    @classmethod
    def of(cls, outputs: Any, batch: Any, size: int, *, shifted: bool) -> "Rows":
        """Up to 8 rows of a microbatch of ``size``, of different classes where it has some; one row stands for two."""
        device = tensors_of(batch)[0].device
        places = torch.linspace(0, size - 1, max(2, min(size, _ROWS)), device=device).long()
        try:
            targets = targets_of(batch)
        except ValueError:
            targets = places
        if targets.ndim == 1 and len(targets) == size:
            places = targets.argsort()[places]
        return cls(outputs, batch, size, shifted).take(places)._mapped(Tensor.detach)._widened()

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        outputs, batch = map_tensors((self.outputs, self.batch), function)
        return replace(self, outputs=outputs, batch=batch)

    def _widened(self) -> "Rows":
        few = sum(tensor.numel() for tensor in tensors_of((self.outputs, self.batch))) <= FEW
        return self._mapped(in_float32) if few else self  # then rounding blurs nothing

    def on_cpu(self) -> "Rows":
        """The rows where a label that there is not raises an error, and does not end the process."""
        return self._mapped(Tensor.cpu)

    def take(self, index: Tensor) -> "Rows":
        """These of the rows, (m,) int64, as often as they are named."""
        outputs, batch = take_rows((self.outputs, self.batch), index, self.size)
        return replace(self, outputs=outputs, batch=batch, size=len(index))

    def together(self, function: LossFunction) -> Tensor:
        """() the loss of all rows; of a vector the mean."""
        return self._evaluated(function, [self])[0].mean()

    def alone(self, function: LossFunction) -> Tensor:
        """(n,) the loss of each row by itself; 0 for one without targets, whose mean loss is none."""
        indices = torch.arange(self.size, device=tensors_of(self.batch)[0].device)
        losses = self._evaluated(function, [self.take(index) for index in indices.split(1)])
        values = torch.stack([loss.sum() for loss in losses])
        return values.where(~values.isnan(), 0)

    @staticmethod
    def _evaluated(function: LossFunction, some: "list[Rows]") -> list[Tensor]:
        devices = {tensor.device for tensor in tensors_of(some[0].batch) if tensor.device.type == "cuda"}
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            return [total_loss(function(rows.outputs, rows.batch)).detach() for rows in some]

    def mean_and_total(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """What the rows' losses are as a mean over samples (over all tokens), and as a sum over what was given."""
        own, all_ = loss_shares(self.batch, shifted=self.shifted)
        return (own * losses).sum() / all_, losses.sum()

    def cross_entropies(self) -> Tensor | None:
        """(n,) of the logits; ``None`` where the targets are no classes of theirs."""
        return _cross_entropies(self.outputs, self.batch, shifted=self.shifted)


def _cross_entropies(outputs: Any, batch: Any, *, shifted: bool, segments: Segments | None = None) -> Tensor | None:
    try:
        batch = within_classes(outputs, batch)
        return per_sample_cross_entropy(outputs, batch, shifted=shifted, segments=segments)
    except ValueError:  # no class targets
        return None


@torch.no_grad()
def read_rows(function: LossFunction, rows: Rows) -> LossReading:
    """Compare the loss of rows with the mean and the sum of their own, by the loss function alone.

    Nothing here looks at values, so nothing waits for the device.
    """
    value, losses = rows.together(function), rows.alone(function)
    mean, total = rows.mean_and_total(losses)
    is_sum = (value - total).abs() < (value - mean).abs()
    return LossReading(value, mean, total, True, is_sum, are_cross_entropies(rows, losses))


@torch.no_grad()
def read_value(
    outputs: Any,
    batch: Any,
    loss: Tensor,
    *,
    shifted: bool,
    counted: Counted | None = None,
    segments: Segments | None = None,
) -> LossReading:
    """Compare a loss with the mean and the sum of the cross-entropies of the logits, where there is no more to go by.

    Nothing here looks at values, so nothing waits for the device.

    Args:
        outputs: of the first microbatch.
        batch: the first microbatch.
        loss: () or (B,), what is about to be differentiated.
        shifted: whether labels are shifted.
        counted: what the trainer would have the loss be, where it counts targets itself.
        segments: where samples share rows.
    """
    value, losses = loss.detach(), _cross_entropies(outputs, batch, shifted=shifted, segments=segments)
    if losses is None:
        return _read_squared_errors(outputs, batch, value)
    own, all_ = loss_shares(batch, shifted=shifted, segments=segments)
    total = (own * losses).sum()
    if loss.ndim:  # a loss per sample, each a mean or a sum over its targets
        return LossReading(value.sum(), losses.sum(), total, False, False, True)
    if (targets := targets_of(batch)).is_floating_point():  # maybe probabilities, of which no more can be told
        squared, is_other = _read_squared_errors(outputs, batch, value), are_no_probabilities(targets)
        mean, summed = squared.mean.where(is_other, total / all_), squared.total.where(is_other, total)
        is_sum, is_comparable = is_other & squared.is_sum, is_other & squared.is_comparable
        return LossReading(value, mean, summed, False, is_sum, ~is_other, is_comparable=is_comparable)
    mean = total / all_
    if counted is None:
        # Half-way between the two, as factors go: smoothed labels make a loss larger, but not as much as a sum is.
        return LossReading(value, mean, total, False, value * value > mean * total, True)
    divided, multiplied = total / counted.divisor.to(total.dtype), mean * counted.multiplier
    kinds = torch.stack([divided, mean, multiplied, total])
    kind = (value.to(total.dtype).log() - kinds.log()).abs().argmin()  # the nearest as factors go
    # Of equal ones, that which it is likely to be in the next microbatch too, where they may differ.
    likely = 0 if counted.is_likely else 1
    is_equal = (kinds[likely] / kinds.index_select(0, kind[None]) - 1).abs() < _SAME
    kind = torch.where(is_equal, likely, kind)[0]
    return LossReading(value, mean, total, False, kind == 3, True, divided, kind == 0, multiplied, kind == 2)


def are_no_probabilities(targets: Tensor) -> Tensor:
    """() whether some of (…, C) floating-point targets do not sum to 1 over the classes."""
    return (targets.sum(-1) - 1).abs().gt(0.02).any()


def _read_squared_errors(outputs: Any, batch: Any, value: Tensor) -> LossReading:
    """Compare a loss with the mean and sum of the squared errors of outputs, one per target; others are not known."""
    logits = logits_of(outputs)
    try:
        targets = targets_of(batch)
    except ValueError:
        targets = None
    if logits is None or targets is None or value.ndim or logits.numel() != targets.numel():
        return LossReading(value, value, value, False, False, False, is_comparable=False)
    errors = (in_float32(logits.detach()).flatten() - targets.flatten()).square()
    mean, total = errors.mean(), errors.sum()
    bound = tolerance(value.dtype)
    is_mean, is_sum = ((value - kind).abs() <= bound * kind + 1e-6 for kind in (mean, total))
    return LossReading(value, mean, total, False, is_sum & ~is_mean, False, is_comparable=is_mean | is_sum)


def are_cross_entropies(rows: Rows, losses: Tensor) -> Tensor | bool:
    """() whether these are the rows' own cross-entropies, as means or as sums over their targets."""
    plain = rows.cross_entropies()
    return False if plain is None else match(losses, plain, rows.batch, shifted=rows.shifted)


def match(losses: Tensor, cross_entropies: Tensor, batch: Any, *, shifted: bool) -> Tensor:
    """() whether losses are these cross-entropies, as means or as sums over the targets of each sample of the batch.

    The mean over the targets of a sample that has none is NaN, and says nothing.
    """
    own, _ = loss_shares(batch, shifted=shifted)
    bound = _rounding(losses.dtype) * (cross_entropies.abs() + 1)
    as_means = (losses - cross_entropies).abs().le(bound) | losses.isnan()
    as_sums = (losses - own * cross_entropies).abs().le(bound * own) | losses.isnan()
    return as_means.all() | as_sums.all()
