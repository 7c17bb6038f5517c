"""The norm of the gradient at the last layer's parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ted_stream.pruning.measures.measure import Measure, Microbatch
from ted_stream.pruning.measures.of_predictions import error_norms

__all__ = ["LastLayerGradient"]


@dataclass(frozen=True)
class LastLayerGradient(Measure):
    """‖p − y‖₂·√(‖f‖₂² + 1) (Katharopoulos and Fleuret 2018), f the input of the output layer.

    The norm of ∂ℓ/∂(W, b) for logits W f + b and the cross-entropy ℓ, exactly; for an output layer without a bias the
    + 1, which is the bias's part, is left out. (EL2N's sibling GraNd, at the last layer.) For language models the mean
    over the sample's own target tokens of each token's norm, which is no less than the norm of their mean.

    Memory as the measures of predictions take it, and one number per token for ‖f‖.
    """

    needs_features = True
    needs_classes = True

    def values(self, microbatch: Microbatch) -> Tensor:
        """(B,) means over each sample's own targets.

        Raises:
            ValueError: if the output layer does not turn one feature vector into the logits of one position.
        """
        predictions = microbatch.predictions(needs_targets=True)
        features, logits = microbatch.features, predictions.logits
        if features is None or features.shape[:-1] != logits.shape[:-1]:
            raise ValueError(
                f"The output layer's input has shape {None if features is None else tuple(features.shape)} and the "
                f"logits, classes last, {tuple(logits.shape)}: not a feature vector for every position with logits, as "
                "a linear layer has. Choose the measure ErrorNorm, or name the layer with output_layer='…'."
            )
        wide = torch.float64 if features.dtype is torch.float64 else torch.float32
        norms = torch.linalg.vector_norm(features, dim=-1, dtype=wide)
        return predictions.means(error_norms, (norms.square() + int(microbatch.has_bias)).sqrt())
