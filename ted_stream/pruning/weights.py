"""A weight on each sample's loss, put onto the gradient at the logits."""

from typing import Any

import torch
from torch import Tensor

from ted_stream.pruning.masks import Chosen

__all__ = ["weighted"]


class _Weights(torch.autograd.Function):
    """The logits themselves, without a copy; every row of their gradient times the row's weight."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor, candidate: Chosen | None) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.candidate = candidate
        return logits.detach()  # not a view, which the model could not write to

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        if ctx.candidate is not None and not ctx.candidate.chosen:
            return gradient, None, None
        (weights,) = ctx.saved_tensors
        return gradient * weights.to(gradient.dtype)[(..., *[None] * (gradient.ndim - weights.ndim))], None, None


def weighted(logits: Tensor, weights: Tensor, candidate: Chosen | None = None) -> Tensor:
    """The logits as they are, whose gradient is that of Σ w_k ℓ_k where the loss is Σ ℓ_k.

    Whatever parameters the loss reaches through these logits alone get the gradient of the weighted loss, and so it
    does not matter where the loss is computed, inside the model or out of it, compiled or not. The loss's value is
    that of the unweighted one. A loss that is a mean over tokens weighs each sample's tokens: Σ_k w_k Σ_t ℓ_kt / n.

    Args:
        logits: (B, …), what enters the loss.
        weights: (B,) w_k, or (R, S) for each token that of its sample, on the logits' device; rounded to the dtype of
            the gradient.
        candidate: where it is to be told before the backward pass only whether the weights count.
    """
    result = _Weights.apply(logits, weights, candidate)
    assert isinstance(result, Tensor)
    return result
