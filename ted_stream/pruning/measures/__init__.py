"""What a training step tells about each of its samples: one number per sample, without an extra backward pass."""

from ted_stream.pruning.measures.last_layer_gradient import LastLayerGradient
from ted_stream.pruning.measures.loss import Loss
from ted_stream.pruning.measures.mask_gradient import SITES, MaskGradient
from ted_stream.pruning.measures.measure import Measure, Microbatch
from ted_stream.pruning.measures.of_predictions import (
    Correct,
    Entropy,
    ErrorNorm,
    LogitMargin,
    Margin,
    TrueProbability,
)
from ted_stream.pruning.measures.registry import MEASURES, make_measure

__all__ = [
    "MEASURES",
    "SITES",
    "Correct",
    "Entropy",
    "ErrorNorm",
    "LastLayerGradient",
    "LogitMargin",
    "Loss",
    "Margin",
    "MaskGradient",
    "Measure",
    "Microbatch",
    "TrueProbability",
    "make_measure",
]
