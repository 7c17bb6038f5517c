"""Gradients of the cross-entropy at the last layer, as factors: (p - y) ⊗ [f; 1], never multiplied out for all."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.static.picks import LOG_PROBABILITIES, check_finite
from ted_stream.methods.static.static_method import Recorded

__all__ = ["FEATURES", "LastLayer"]

FEATURES = "features"
_BLOCK = 1 << 22  # numbers that are read at a time


@dataclass(frozen=True, kw_only=True)
class LastLayer:
    """The factors of ∂ℓ_i/∂(W, b) = (p_i - y_i) ⊗ [f_i; 1] of logits W f + b, read block by block in float64.

    Args:
        log_probabilities: (N, C) float32.
        features: (N, D) float32.
        labels: (N,) int64 classes.
        has_bias: else the 1 below the features is left out.
        projection: (D, D'), what features are multiplied by where they are read.
    """

    log_probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    has_bias: bool
    projection: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, recorded: Recorded) -> "LastLayer":
        """Of what a ``LastLayerMethod`` wrote.

        Raises:
            ValueError: without a label of every sample within the logits' classes, or with values that are not finite.
        """
        labels, log_probabilities = recorded.labels, recorded.columns[LOG_PROBABILITIES]
        classes = log_probabilities.shape[1]
        if labels is None or labels.min() < 0 or labels.max() >= classes:
            found = "no labels" if labels is None else f"labels from {labels.min()} to {labels.max()}"
            raise ValueError(
                f"The samples have {found}, but the last layer's gradient needs one class of each, from 0 to "
                f"{classes - 1} as the logits have. Let the dataset give class labels, or choose a method without them."
            )
        check_finite(recorded)
        return cls(
            log_probabilities=log_probabilities,
            features=recorded.columns[FEATURES],
            labels=labels,
            has_bias=recorded.has_bias,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int]:
        """C, and the columns of the inputs: D (or D') and, with a bias, one more."""
        matrix = self.features if self.projection is None else self.projection
        return self.log_probabilities.shape[1], matrix.shape[1] + self.has_bias

    def blocks(self, rows: NDArray[np.int64] | None = None, width: int = 0) -> Iterator[NDArray[np.int64]]:
        """The rows (all, by default) in blocks of bounded size, if each takes ``width`` numbers beside its factors."""
        rows = np.arange(len(self)) if rows is None else rows
        size = max(1, _BLOCK // (width + self.features.shape[1] + sum(self.shape)))
        for first in range(0, len(rows), size):
            yield rows[first : first + size]

    def inputs(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, D) features or, with a bias, (n, D + 1) with ones in the last column."""
        features = self.features[rows].astype(np.float64)
        if self.projection is not None:
            features = features @ self.projection
        return np.hstack([features, np.ones((len(rows), 1))]) if self.has_bias else features

    def probabilities(
        self, rows: NDArray[np.int64], inputs: NDArray[np.float64], change: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """(n, C) p; with a change of the head, (C, D + 1), p after it: softmax(log p + change · [f; 1])."""
        logits = self.log_probabilities[rows].astype(np.float64)
        if change is not None:
            logits += inputs @ change.T
            logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        return p / p.sum(1, keepdims=True)

    def errors(
        self, rows: NDArray[np.int64], inputs: NDArray[np.float64], change: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """(n, C) p - y. The true class's p - 1 is minus the sum of the others: exact where p is almost 1."""
        errors = self.probabilities(rows, inputs, change)
        true = np.arange(len(rows)), self.labels[rows]
        errors[true] = 0
        errors[true] = -errors.sum(1)
        return errors

    def gradient_sum(self, rows: NDArray[np.int64], change: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """(C, D + 1), the sum of the rows' gradients at the head, or at the head after a change."""
        total = np.zeros(self.shape)
        for block in self.blocks(rows):
            inputs = self.inputs(block)
            total += self.errors(block, inputs, change).T @ inputs
        return total

    def products(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) the inner products of all gradients with a (C, D + 1) matrix."""
        found = np.empty(len(self))
        for block in self.blocks():
            inputs = self.inputs(block)
            found[block] = np.einsum("ic,ic->i", self.errors(block, inputs), inputs @ matrix.T)
        return found

    def distances(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, n) ‖g_i - g_j‖₂, by g_i · g_j = ((p - y)_i · (p - y)_j) ([f; 1]_i · [f; 1]_j).

        Takes two (n, n) arrays of float64 on the way.
        """
        inputs = self.inputs(rows)
        errors = self.errors(rows, inputs)
        squares = errors @ errors.T
        squares *= inputs @ inputs.T
        norms = squares.diagonal().copy()
        squares *= -2
        squares += norms
        squares += norms[:, None]
        np.fill_diagonal(squares, 0)
        return np.sqrt(np.maximum(squares, 0, out=squares), out=squares).astype(np.float32)
