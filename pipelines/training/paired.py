"""Differences of two arms whose runs share seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["paired"]


def paired(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences of two arms over seeds, and half of its 95 % t interval; nan for one seed."""
    from scipy.stats import t

    differences = np.subtract(values, baseline)
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean()), float(t.ppf(0.975, len(differences) - 1) * error)
