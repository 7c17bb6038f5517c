"""What methods on the last layer's gradients have written of every sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.last_layer import FEATURES
from ted_stream.methods.static.picks import LOG_PROBABILITIES, class_log_probabilities
from ted_stream.methods.static.static_method import ScoredBatch, StaticMethod

__all__ = ["LastLayerMethod"]


@dataclass(frozen=True, kw_only=True)
class LastLayerMethod(StaticMethod):
    """A method on the gradients of the last layer: writes log p (B, C) and features f (B, D) of every sample."""

    needs_features: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``log_probabilities`` (B, C) and ``features`` (B, D).

        Raises:
            ValueError: if there is not one prediction and one feature vector per sample.
        """
        del before, epoch
        log_probabilities, features = class_log_probabilities(scored), scored.microbatch.features
        if features is None or features.ndim != 2:
            found = None if features is None else tuple(features.shape)
            raise ValueError(
                f"The output layer's input has shape {found}, not (B, D): the last layer's gradient needs one feature "
                "vector per sample, as a linear layer has. Name the layer with output_layer='…', or choose a method "
                "that needs no features."
            )
        return {LOG_PROBABILITIES: log_probabilities, FEATURES: features.detach().float()}
