"""What pruned data tell of a trained model: internal generalization (TED, section 3.2), gradients, loss landscape."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.pruning.hashing import hash_ids

__all__ = ["cosine", "flat_gradient", "interpolated", "least_kept", "mean_over", "pearson"]


def mean_over(values: NDArray[np.floating], members: NDArray[np.bool_]) -> float | None:
    """The mean of the values of some samples, added up in float64; ``None`` if there are none.

    L(𝒟̂, θ) of TED, section 3.1, where the values are the samples' losses and the members those of 𝒟̂.

    Args:
        values: (N,), one for each sample.
        members: (N,) true for the samples that count.

    Raises:
        ValueError: if the shapes differ.
    """
    if values.shape != members.shape or values.ndim != 1:
        raise ValueError(f"values have shape {values.shape} and members {members.shape}; give (N,) each.")
    return float(np.mean(values[members], dtype=np.float64)) if members.any() else None


def least_kept(times_kept: NDArray[np.integer], count: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """The samples that were selected least often, which stand for "the pruned data" of dynamic pruning (TED, Fig. 1).

    Args:
        times_kept: (N,), how many epochs kept each sample.
        count: how many samples to name, in [0, N].
        seed: of the hashes that decide between samples that were kept equally often.

    Returns:
        (N,) bool, true for exactly ``count`` samples.

    Raises:
        ValueError: for a count out of range.
    """
    if not 0 <= count <= len(times_kept):
        raise ValueError(f"count is {count}, but it must lie in [0, {len(times_kept)}], the number of samples.")
    order = np.lexsort((hash_ids(np.arange(len(times_kept)), seed=seed), times_kept))
    marks = np.zeros(len(times_kept), np.bool_)
    marks[order[:count]] = True
    return marks


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """∇_θ of a loss, all parameters in one vector.

    Args:
        loss: () with a graph, which is kept.
        parameters: to differentiate by; those that the loss does not hang on have a gradient of zero.

    Returns:
        (P,) float64 on the parameters' device, P being the number of all their entries.
    """
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.detach().reshape(-1).double() for part in parts])


def cosine(a: Tensor, b: Tensor) -> float | None:
    """⟨a, b⟩ / (‖a‖ ‖b‖) of two vectors, in [-1, 1]; ``None`` where one of them is zero or not finite.

    Args:
        a: (P,).
        b: (P,).
    """
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    if not torch.isfinite(norms) or norms == 0:
        return None
    return float((torch.dot(a, b) / norms).clamp(-1, 1))


def pearson(a: Tensor, b: Tensor) -> float | None:
    """Pearson's correlation of the entries of two vectors, as TED, Fig. 4, has it of two gradients.

    It is the cosine of what the vectors differ from their means by. ``None`` where one of them is constant or not
    finite.

    Args:
        a: (P,).
        b: (P,).
    """
    return cosine(a - a.mean(), b - b.mean())


def interpolated(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 − α)·θ_1 + α·θ_T of two states of one network (TED, section 4.5, Fig. 8; Goodfellow et al., 2014).

    Statistics of normalisation layers go along the same line. What is no floating-point number (counts of batches) is
    that of the nearer end.

    Args:
        start: by name, θ_1.
        end: by name, θ_T.
        alpha: in [0, 1]; beyond, variances could fall below zero.

    Returns:
        By name; at 0 and 1 the ends themselves.

    Raises:
        ValueError: for an alpha out of range, or states of different names or shapes.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but it must lie in [0, 1], between the two states.")
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (start, end)]
    if shapes[0] != shapes[1]:
        differing = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
        raise ValueError(
            f"the two states differ in {differing[0]}: {shapes[0].get(differing[0])} and {shapes[1].get(differing[0])};"
            " interpolate between states of one network."
        )
    nearer = end if alpha >= 0.5 else start
    if alpha in (0, 1):
        return dict(nearer)
    return {
        name: (1 - alpha) * start[name] + alpha * end[name] if start[name].is_floating_point() else nearer[name]
        for name in start
    }
