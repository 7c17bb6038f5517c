"""Pruning within a Composer Trainer."""

from ted_stream.extras import optional_imports

with optional_imports():
    from ted_stream.trainers.composer.data_pruning import DataPruning
    from ted_stream.trainers.composer.releasing import release_after_fit

__all__ = ["DataPruning"]

release_after_fit()
