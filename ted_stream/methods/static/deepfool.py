"""DeepFool: the samples closest to a class boundary."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.measured import finite_scores
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod
from ted_stream.pruning.batches import logits_of, replace_first_tensor, take_rows, tensors_of
from ted_stream.pruning.settings import check_whole

__all__ = ["DeepFool"]

_OVERSHOOT = 0.02  # of the source: a step ends just beyond the boundary, and not on it
_LARGEST = torch.finfo(torch.float32).max


def _step(logits: Tensor, x: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The step of each sample to its nearest linearised boundary.

    Args:
        logits: (m, C), of ``x``.
        x: (m, …), in the graph of the logits.
        candidates: (m, c) int64, the class that was predicted at the start, and others.

    Returns:
        (m, …) steps, and (m,) their lengths, infinite where no gradient tells of a boundary.
    """
    values = logits.gather(1, candidates)
    slopes = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0].float() for value in values.unbind(1)]
    shortest = values.new_full((len(x),), torch.inf, dtype=torch.float32)
    step = torch.zeros_like(slopes[0])
    shape = (-1, *[1] * (x.ndim - 1))
    for value, slope in zip(values.detach().float().unbind(1)[1:], slopes[1:], strict=True):
        normal = slope - slopes[0]
        norm = torch.linalg.vector_norm(normal.flatten(1), dim=1)
        length = (value - values.detach()[:, 0].float()).abs() / norm  # 0 / 0 is NaN, and never shorter
        shorter = length < shortest
        step = torch.where(shorter.view(shape), (length / norm).view(shape) * normal, step)
        shortest = torch.where(shorter, length, shortest)
    return step, shortest


@dataclass(frozen=True, kw_only=True)
class DeepFool(StaticMethod):
    """The smallest squared perturbation that changes the prediction; the smallest are kept (Ducoffe and Precioso 2018).

    Step by step to the nearest of the linearised boundaries between the predicted class and the others
    (Moosavi-Dezfooli, Fawzi and Frossard 2016, Algorithm 2), until the prediction differs. The score is −‖r‖². What no
    gradient can move counts as farthest; what has not changed after all steps counts as far as it came.

    Args:
        steps: at most; the paper needs a few, and the implementations stop at 50.
        classes: whose boundaries are looked at, the likeliest ones; a backward pass each and step. ``None``: all.

    Raises:
        ValueError: for fewer than one step or two classes, at construction.
        TypeError: for a value of another type.
    """

    steps: int = 50
    classes: int | None = 10

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("classes", 2)):
            value = getattr(self, name)
            if value is None and name == "classes":
                continue
            whole = check_whole(name, value, fix=f"it is a count, at least {least}.")
            if whole < least:
                raise ValueError(f"{name} is {whole}, but must be at least {least}.")
            object.__setattr__(self, name, whole)

    @torch.enable_grad()
    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``score``, (B,).

        Raises:
            ValueError: if the batch's first tensor holds no floats, or the outputs are no logits (B, C).
        """
        del before, epoch
        batch, size = scored.microbatch.batch, scored.microbatch.size
        start = tensors_of(batch)[0].detach()
        if not start.is_floating_point():
            raise ValueError(f"DeepFool moves inputs, but the batch's first tensor is of {start.dtype}; use Margin.")
        moved = torch.zeros_like(start, dtype=torch.float32)
        stuck = torch.zeros(size, dtype=torch.bool, device=start.device)
        active = torch.arange(size, device=start.device)
        candidates = active
        for step in range(self.steps):
            # Samples whose prediction has changed are frozen: they leave the batch.
            x = (start[active] + (1 + _OVERSHOOT) * moved[active]).to(start.dtype).requires_grad_()
            part = replace_first_tensor(take_rows(batch, active, size), lambda _, x=x: x)
            logits = logits_of(scored.forward(part))
            if logits is None or logits.ndim != 2 or not (step or logits.isfinite().all()):
                raise ValueError("DeepFool needs finite logits (B, C), one prediction per sample; use Margin.")
            if not step:
                candidates = logits.detach().topk(min(self.classes or logits.shape[1], logits.shape[1]), dim=1).indices
            steps, lengths = _step(logits, x, candidates[active])
            same = logits.argmax(1) == candidates[active, 0]
            stuck[active] = same & ~lengths.isfinite()
            goes_on = same & lengths.isfinite()
            active = active[goes_on]
            moved[active] += steps[goes_on]
            if not len(active):
                break
        squared = moved.flatten(1).square().sum(1).clamp(max=_LARGEST)
        return {"score": -squared.where(~stuck, _LARGEST)}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """The column."""
        del keep, seed
        return Scored(scores=finite_scores(recorded.columns["score"], self))
