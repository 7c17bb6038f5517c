"""Losses as Composer's models give them: a tensor, a mapping or a sequence of tensors."""

from collections.abc import Callable, Mapping
from typing import Any

from composer.core import State
from composer.models import HuggingFaceModel
from torch import Tensor

from ted_stream.pruning.batches import total_loss

__all__ = ["loss_of", "with_total"]


def loss_of(state: State) -> Callable[[Any, Any], Any] | None:
    """The model's loss as a function of (outputs, batch), unless it is made in the forward pass."""
    model: Any = state.model.module if state.is_model_ddp else state.model
    return None if isinstance(model, HuggingFaceModel) else model.loss


def with_total(loss: Any) -> Tensor | dict[str, Tensor]:
    """The loss with the tensor that the trainer differentiates: several get their ``total``, as Composer sums."""
    if isinstance(loss, Tensor):
        return loss
    parts = dict(loss) if isinstance(loss, Mapping) else {f"loss{i}": part for i, part in enumerate(loss)}
    if "total" not in parts:
        parts["total"] = total_loss(parts)
    return parts
