"""Pruning as Composer algorithms."""

from ted_stream.algorithms.data_pruning import DataPruning, EpochRecord
from ted_stream.algorithms.named import TED, RandomPruning

__all__ = ["TED", "DataPruning", "EpochRecord", "RandomPruning"]
