"""GraNd: the samples of the largest gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ted_stream.methods.static.measured import MeasuredScore
from ted_stream.methods.static.static_method import ScoredBatch
from ted_stream.pruning.batches import IGNORE_INDEX, logits_of, map_tensors, targets_of, tensors_of, total_loss
from ted_stream.pruning.loss_kinds import holds_loss, in_float32
from ted_stream.pruning.measures import LastLayerGradient, Microbatch
from ted_stream.pruning.settings import check_choice

__all__ = ["GraNd"]

_ENTRIES = 1 << 26  # of per-sample gradients that exist at a time


class _Forward(nn.Module):
    """The model behind ``forward``, so that ``functional_call`` can put other parameters into it."""

    def __init__(self, scored: ScoredBatch) -> None:
        super().__init__()
        self.model = scored.model
        self._forward = (scored.forward,)  # in a tuple, lest a model that is its own forward be registered twice

    def forward(self, batch: Any) -> Any:
        return self._forward[0](batch)


def _loss(outputs: Any, batch: Any, microbatch: Microbatch) -> Tensor:
    """() the loss of a batch of one sample; without a function for it, the cross-entropy of its own targets."""
    if microbatch.loss_function is not None and not holds_loss(microbatch.outputs):
        return total_loss(microbatch.loss_function(outputs, batch)).sum()
    logits, targets = logits_of(outputs), targets_of(batch)
    if logits is None:
        raise ValueError(f"Outputs of type {type(outputs).__name__} hold no logits; give the model's loss function.")
    if targets.is_floating_point():
        return F.cross_entropy(logits, targets)
    if microbatch.shifted and targets.ndim > 1:
        logits, targets = logits[:, :-1], targets[:, 1:]
    logits = logits.movedim(-1, 1) if logits.shape[:-1] == targets.shape else logits
    total = F.cross_entropy(logits, targets.long(), reduction="sum", ignore_index=IGNORE_INDEX)
    return total / targets.ne(IGNORE_INDEX).sum().clamp(min=1)


def _gradient_norms(scored: ScoredBatch) -> Tensor:
    """(B,) the norms of the gradients of the samples' own losses at all trainable parameters together.

    Raises:
        ValueError: if the model cannot be mapped over samples.
    """
    batch, size, module = scored.microbatch.batch, scored.microbatch.size, _Forward(scored)
    # Every place once, and every parameter once: functional_call's own way with ties leaves the model changed where one
    # layer has two names.
    places = {
        f"{path}.{name}": p
        for path, layer in module.named_modules()
        for name, p in layer.named_parameters(recurse=False)
        if p.requires_grad
    }
    trainable = {id(p): p.detach() for p in places.values()}

    def of_one(parameters: dict[int, Tensor], rows: list[Tensor]) -> Tensor:
        left = iter(rows)
        own = map_tensors(batch, lambda t: next(left).unsqueeze(0) if t.shape[:1] == (size,) else t)
        put = {place: parameters[id(p)] for place, p in places.items()}
        outputs = torch.func.functional_call(module, put, (own,), tie_weights=False)
        return _loss(outputs, own, scored.microbatch)

    def norm(rows: list[Tensor]) -> Tensor:
        gradients = torch.func.grad(of_one)(trainable, rows).values()
        return torch.stack([in_float32(g).square().sum() for g in gradients]).sum().sqrt()

    chunk = max(1, _ENTRIES // max(1, sum(p.numel() for p in trainable.values())))
    try:
        return torch.func.vmap(norm, chunk_size=chunk)([t for t in tensors_of(batch) if t.shape[:1] == (size,)])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            "The gradient of every sample cannot be had from this model at once (torch.func.vmap says above what "
            "failed). Choose gradient='last_layer', which asks for no backward pass."
        ) from error


@dataclass(frozen=True, kw_only=True)
class GraNd(MeasuredScore):
    """‖∇ℓ‖₂ of the sample's own loss; the largest are kept (Paul, Ganguli and Dziugaite 2021).

    The paper averages over surrogates from several seeds, early in training or at their start.

    Args:
        gradient: ``last_layer``, ‖(p − y) ⊗ [f, 1]‖₂ without a backward pass (see :class:`LastLayerGradient`), or
            ``full``, at all trainable parameters.

    Attributes:
        averages_runs: that the mean over surrogates is the method's score.

    Raises:
        ValueError: for another ``gradient``, at construction.
    """

    averages_runs: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True

    gradient: str = "last_layer"

    def __post_init__(self) -> None:
        check_choice("gradient", self.gradient, ("last_layer", "full"))
        # A full gradient needs no output layer to be found.
        object.__setattr__(self, "needs_features", self.gradient == "last_layer")

    def measure(self) -> LastLayerGradient:
        """The gradient norm at the last layer."""
        return LastLayerGradient()

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``score``, (B,)."""
        if self.gradient == "last_layer":
            return super().of_batch(scored, before, epoch)
        return {"score": _gradient_norms(scored).detach().float()}
