"""The test metrics of a run as it goes, in its folder: of a run that was killed, or is at work, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ted_stream.files import join, read_bytes, write_bytes

__all__ = ["LABELS", "METRICS_FILE", "MetricsRecord", "read_metrics"]

METRICS_FILE = "metrics.json"
LABELS = {
    "MulticlassAccuracy": "test accuracy",
    "MulticlassMatthewsCorrCoef": "test Matthews correlation",
    "PearsonCorrCoef": "test Pearson correlation",
    "SpearmanCorrCoef": "test Spearman correlation",
    "MeanSquaredError": "test squared error",
    "CrossEntropy": "test cross entropy",
    "LanguageCrossEntropy": "test loss per token",
}
"""What people call the metrics."""


class MetricsRecord:
    """Keeps what every test of a run found, in ``metrics.json``; on rank 0 alone.

    Args:
        folder: of the run, local or a URI.
        rank: this process'.
    """

    def __init__(self, folder: str, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._tests: list[dict[str, Any]] = []

    def go_on(self, batch: int) -> None:
        """Take over what was found up to so many batches; later tests come again."""
        if batch and not self._rank:
            self._tests = [test for test in read_metrics(self._folder) if test["batch"] <= batch]

    def add(self, *, batch: int, samples: int, metrics: Mapping[str, float]) -> None:
        """Write what a test found.

        Args:
            batch: that were trained on before it.
            samples: that were trained on before it, over all ranks.
            metrics: by name, over all ranks.
        """
        if self._rank:
            return
        before = [test for test in self._tests if test["batch"] != batch]
        self._tests = [*before, {"batch": batch, "samples": samples, "metrics": dict(metrics)}]
        write_bytes(join(self._folder, METRICS_FILE), json.dumps({"tests": self._tests}, indent=1).encode())


def read_metrics(folder: str) -> list[dict[str, Any]]:
    """What the tests of a run found, in their order: ``batch``, ``samples`` and ``metrics`` of each; empty without.

    Raises:
        ValueError: the file is damaged.
    """
    path = join(folder, METRICS_FILE)
    try:
        return list(json.loads(read_bytes(path))["tests"])
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); put back the file that the run wrote, or remove it."
        ) from error
