"""Measures of what the model predicts.

``error_norm``, ``margin``, ``logit_margin``, ``entropy``, ``correct``, ``true_probability``.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ted_stream.pruning.measures.measure import Measure, Microbatch

__all__ = ["Correct", "Entropy", "ErrorNorm", "LogitMargin", "Margin", "TrueProbability", "error_norms"]


class PredictionMeasure(Measure):
    """A function of the logits and the target of one position; over several, the mean over the sample's own.

    Positions whose target is -100 do not count. Class probabilities (as MixUp makes them) are targets too. At most
    2^24 logits are widened to float32 at a time, so it takes a few buffers of 64 MB, whatever the vocabulary, and
    one number per token.
    """

    needs_classes = True

    @staticmethod
    @abstractmethod
    def of(logits: Tensor, targets: Tensor) -> Tensor:
        """(M,) from logits (M, C) and targets, (M,) int64 or (M, C)."""

    def values(self, microbatch: Microbatch) -> Tensor:
        """(B,) means over each sample's own targets."""
        return microbatch.predictions(needs_targets=self.needs_targets).means(self.of)


def error_norms(logits: Tensor, targets: Tensor) -> Tensor:
    """(M,) ‖p − y‖₂, from logits (M, C) and classes (M,) or class probabilities (M, C)."""
    p = logits.softmax(1)
    if targets.is_floating_point():
        return torch.linalg.vector_norm(p - targets, dim=1)
    places = targets.unsqueeze(1)
    return torch.linalg.vector_norm(p.scatter_add_(1, places, p.new_full((1, 1), -1.0).expand(places.shape)), dim=1)


@dataclass(frozen=True)
class ErrorNorm(PredictionMeasure):
    """‖p − y‖₂, p = softmax(z) (EL2N: Paul et al. 2021): the gradient at the logits; from 0 to √2."""

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Tensor:
        """(M,) ‖p − y‖₂."""
        return error_norms(logits, targets)


@dataclass(frozen=True)
class Margin(PredictionMeasure):
    """p₁ − p₂ between the two likeliest classes: the smaller, the harder. From 0 to 1; needs no targets."""

    needs_targets = False

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Tensor:
        """(M,) p₁ − p₂."""
        del targets
        first, second = logits.softmax(1).topk(2, dim=1).values.unbind(1)
        return first - second


@dataclass(frozen=True)
class LogitMargin(PredictionMeasure):
    """z_y − max over the other classes c of z_c (AUM: Pleiss et al. 2020): below 0 where the prediction is wrong.

    Of class probabilities the target is the likeliest class.
    """

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Tensor:
        """(M,) z_y − max z_c."""
        places = (targets.argmax(1) if targets.is_floating_point() else targets).unsqueeze(1)
        others = logits.scatter(1, places, -torch.inf)
        return logits.gather(1, places).squeeze(1) - others.amax(1)


@dataclass(frozen=True)
class Entropy(PredictionMeasure):
    """−Σ p log p of the prediction, in nats: the larger, the less certain. From 0 to log C; needs no targets."""

    needs_targets = False

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Tensor:
        """(M,) −Σ p log p."""
        del targets
        return torch.special.entr(logits.softmax(1)).sum(1)


@dataclass(frozen=True)
class Correct(PredictionMeasure):
    """1 where the likeliest class is the target, else 0; over tokens, the share that is right.

    Of class probabilities the target is the likeliest class.
    """

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Tensor:
        """(M,) 0 or 1."""
        classes = targets.argmax(1) if targets.is_floating_point() else targets
        return logits.argmax(1).eq(classes).to(logits.dtype)


@dataclass(frozen=True)
class TrueProbability(PredictionMeasure):
    """p_y, the probability of the target: the smaller, the harder. Of class probabilities Σ y p."""

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Tensor:
        """(M,) p_y."""
        p = logits.softmax(1)
        if targets.is_floating_point():
            return (p * targets).sum(1)
        return p.gather(1, targets.unsqueeze(1)).squeeze(1)
