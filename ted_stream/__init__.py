"""Train on less data without losing accuracy: pruning while training, at shard-read time.

The names are imported when first used, so that reading a skip-list costs no import of torch or Composer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from ted_stream.engine import SelectionWarning
    from ted_stream.methods import (
        RCAP,
        TED,
        UCB,
        Composed,
        DynamicDUAL,
        EpsilonGreedy,
        FixedSubset,
        ImportanceSampling,
        InfoBatch,
        Learnability,
        OrderDP,
        RandomPruning,
        RePB,
        SeTa,
    )
    from ted_stream.reading import Prunable, PrunedStreamingDataset, drop_pruned
    from ted_stream.sampler import PrunedSampler
    from ted_stream.seeding import SeededSamples
    from ted_stream.skip_list import SkipList, SkipListError, read_skip_list, write_skip_list
    from ted_stream.trainers.composer import DataPruning
    from ted_stream.trainers.huggingface import PruningMixin
    from ted_stream.trainers.loop import Pruner

__all__ = [
    "RCAP",
    "TED",
    "UCB",
    "Composed",
    "DataPruning",
    "DynamicDUAL",
    "EpsilonGreedy",
    "FixedSubset",
    "ImportanceSampling",
    "InfoBatch",
    "Learnability",
    "OrderDP",
    "Prunable",
    "PrunedSampler",
    "PrunedStreamingDataset",
    "Pruner",
    "PruningMixin",
    "RandomPruning",
    "RePB",
    "SeTa",
    "SeededSamples",
    "SelectionWarning",
    "SkipList",
    "SkipListError",
    "drop_pruned",
    "read_skip_list",
    "write_skip_list",
]

_MODULES = {
    "ted_stream.engine": ("SelectionWarning",),
    "ted_stream.methods": (
        "Composed",
        "DynamicDUAL",
        "EpsilonGreedy",
        "FixedSubset",
        "ImportanceSampling",
        "InfoBatch",
        "Learnability",
        "OrderDP",
        "RCAP",
        "RandomPruning",
        "RePB",
        "SeTa",
        "TED",
        "UCB",
    ),
    "ted_stream.reading": ("Prunable", "PrunedStreamingDataset", "drop_pruned"),
    "ted_stream.sampler": ("PrunedSampler",),
    "ted_stream.seeding": ("SeededSamples",),
    "ted_stream.skip_list": ("SkipList", "SkipListError", "read_skip_list", "write_skip_list"),
    "ted_stream.trainers.composer": ("DataPruning",),
    "ted_stream.trainers.huggingface": ("PruningMixin",),
    "ted_stream.trainers.loop": ("Pruner",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # what was installed
        return import_module("importlib.metadata").version("ted-stream")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
