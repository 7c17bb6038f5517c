"""Data pruning around a loop of one's own."""

from ted_stream.trainers.loop.pruner import Pruner

__all__ = ["Pruner"]
