"""Measures by name."""

from dataclasses import fields
from typing import Any

from ted_stream.pruning.measures.last_layer_gradient import LastLayerGradient
from ted_stream.pruning.measures.loss import Loss
from ted_stream.pruning.measures.mask_gradient import MaskGradient
from ted_stream.pruning.measures.measure import Measure
from ted_stream.pruning.measures.of_predictions import (
    Correct,
    Entropy,
    ErrorNorm,
    LogitMargin,
    Margin,
    TrueProbability,
)

__all__ = ["MEASURES", "make_measure"]

MEASURES: dict[str, type[Measure]] = {
    "correct": Correct,
    "entropy": Entropy,
    "error_norm": ErrorNorm,
    "last_layer_gradient": LastLayerGradient,
    "logit_margin": LogitMargin,
    "loss": Loss,
    "margin": Margin,
    "mask_gradient": MaskGradient,
    "true_probability": TrueProbability,
}


def make_measure(name: str, **settings: Any) -> Measure:
    """A measure by its name.

    Args:
        name: one of :data:`MEASURES`.
        settings: of that measure.

    Raises:
        ValueError: if there is no measure of that name, or it has no such setting.
    """
    if not isinstance(name, str) or name not in MEASURES:
        raise ValueError(f"The measure is {name!r}, but must be one of {', '.join(MEASURES)}.")
    measure: Any = MEASURES[name]
    known = [field.name for field in fields(measure)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"The measure {name!r} has no setting {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, known)) or 'none'}. Leave it out."
        )
    return measure(**settings)
