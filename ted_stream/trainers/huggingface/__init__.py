"""Data pruning in Hugging Face's Trainer, and in those that are made of it."""

from ted_stream.extras import optional_imports

with optional_imports():
    from ted_stream.trainers.huggingface.pruning_mixin import PruningMixin

__all__ = ["PruningMixin"]
