"""What leaving a sample out does to the last layer: influence functions by its whole Hessian."""

import numpy as np
import torch
from numpy.typing import NDArray

from ted_stream.methods.static.last_layer import LastLayer

__all__ = ["LARGEST", "Influences", "last_layer_hessian", "refuse_too_large"]

LARGEST = 1 << 14  # parameters of the last layer: their Hessian takes 2 GiB


def last_layer_hessian(layer: LastLayer) -> torch.Tensor:
    """The Hessian of the mean cross-entropy by the last layer's weight and bias, read block by block.

    1/N Σ_i (diag(p_i) - p_i p_iᵀ) ⊗ [f_i; 1] [f_i; 1]ᵀ.

    Returns:
        (P, P) float64 of P = C · (D + 1) parameters, ordered as a (C, D + 1) matrix is.
    """
    classes, inputs = layer.shape
    total = torch.zeros(classes * inputs, classes * inputs, dtype=torch.float64)
    by_class = total.view(classes, inputs, classes, inputs)
    for rows in layer.blocks(width=classes * inputs):
        x = layer.inputs(rows)
        p = layer.probabilities(rows, x)
        products = torch.from_numpy((p[:, :, None] * x[:, None, :]).reshape(len(rows), -1))
        total.addmm_(products.T, products, alpha=-1 / len(layer))
        x = torch.from_numpy(x)
        for place in range(classes):
            by_class[place, :, place].addmm_(x.T, products.view(-1, classes, inputs)[:, place], alpha=1 / len(layer))
    return total


class Influences:
    """The change of the last layer by leaving out a sample, s_i = (H + λ I)⁻¹ g_i / N (Koh and Liang, 2017, eq. 1).

    Holds one (P, P) float64 matrix, and two more while it is made; never the influences of all samples.

    Args:
        layer: the gradients g_i.
        damping: λ as a share of H's mean eigenvalue: H alone is singular, since probabilities sum to 1.
    """

    def __init__(self, layer: LastLayer, damping: float) -> None:
        self._layer = layer
        hessian = last_layer_hessian(layer)
        diagonal = hessian.diagonal()
        diagonal += damping * (float(diagonal.mean()) or 1.0)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).numpy()

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, P) influences."""
        inputs = self._layer.inputs(rows)
        gradients = self._layer.errors(rows, inputs)[:, :, None] * inputs[:, None, :]
        return gradients.reshape(len(rows), -1) @ self._inverse / len(self._layer)


def refuse_too_large(classes: int, inputs: int, *, has_bias: bool) -> None:
    """Refuse a last layer whose Hessian does not fit.

    Args:
        classes: C.
        inputs: D, the bias's 1 included.
        has_bias: whether it is.

    Raises:
        ValueError: naming what fits.
    """
    if classes * inputs > LARGEST:
        most = LARGEST // classes - has_bias
        fix = f"Give features={most} or fewer, to which they are projected."
        raise ValueError(
            f"The last layer of {classes} classes and {inputs} inputs has a Hessian of "
            f"{(classes * inputs) ** 2 * 8 / 2**30:.2f} GiB, but 2 GiB is the bound. "
            + (fix if most > 0 else "There are too many classes for this method: choose another.")
        )
