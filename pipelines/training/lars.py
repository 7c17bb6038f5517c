"""LARS: SGD with momentum and a learning rate per layer (You, Gitman and Ginsburg 2017)."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["LARS", "lars_groups"]


class LARS(Optimizer):
    r"""Layer-wise adaptive rate scaling.

    For a tensor w with gradient g, weight decay β, momentum m, trust coefficient η and learning rate γ
    (algorithm 1 of the paper)::

        λ = η ‖w‖ / (‖g‖ + β ‖w‖)        (1 where either norm is 0)
        v ← m v + γ λ (g + β w)
        w ← w − v

    A group with ``adapt=False`` has λ = 1: plain SGD. Norms stay on the device and all tensors of a group are
    updated together, so that a step never waits for the device. ``torch_optimizer.LARS`` is the same rule with two
    comparisons on the host per tensor, and keeps γ outside of v.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        adapt: bool = True,
    ) -> None:
        """Set the defaults of the parameter groups.

        Args:
            params: parameters, or groups of them.
            lr: γ, > 0.
            momentum: m, in [0, 1).
            weight_decay: β, ≥ 0.
            trust_coefficient: η, > 0.
            adapt: scale by λ.

        Raises:
            ValueError: a value is out of its range.
        """
        if not lr > 0:
            raise ValueError(f"lr is {lr}, expected a positive number.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, expected a number in [0, 1).")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}, expected 0 or more.")
        if not trust_coefficient > 0:
            raise ValueError(f"trust_coefficient is {trust_coefficient}, expected a positive number.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs = [(weight, weight.grad) for weight in group["params"] if weight.grad is not None]
            if pairs:
                self._update([weight for weight, _ in pairs], [gradient for _, gradient in pairs], group)
        return loss

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        steps = torch._foreach_add(gradients, weights, alpha=decay)  # g + β w
        if group["adapt"]:
            weight_norms = torch.stack(torch._foreach_norm(weights))
            gradient_norms = torch.stack(torch._foreach_norm(gradients))
            trust = group["trust_coefficient"] * weight_norms / (gradient_norms + decay * weight_norms)
            usable = (weight_norms > 0) & (gradient_norms > 0)
            torch._foreach_mul_(steps, list(torch.where(usable, trust, 1.0).unbind()))
        torch._foreach_mul_(steps, group["lr"])
        velocities = []
        for weight in weights:
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            velocities.append(state["momentum_buffer"])
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        torch._foreach_sub_(weights, velocities)


def lars_groups(model: nn.Module) -> list[dict[str, Any]]:
    """A model's parameters for LARS: weights adapted and decayed, vectors (biases, norms) plain SGD without decay.

    Vectors are told by having at most one axis. The trust ratio of a vector that starts at zero would be undefined,
    and decaying normalisation gains is useless; InfoBatch's CIFAR recipe leaves both out too.
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if vectors:
        groups.append({"params": vectors, "adapt": False, "weight_decay": 0.0})
    return groups
