"""A config that names one of our algorithms reads its training data in a way that can be pruned."""

from typing import Any

from ted_stream.trainers.foundry.algorithms import ALGORITHMS

__all__ = ["PRUNED_LOADERS", "read_prunable"]

PRUNED_LOADERS = {"finetuning": "pruned_finetuning", "text": "pruned_text"}
"""The dataloaders of llm-foundry that are replaced, and by which."""


def read_prunable(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a training dataloader that can be pruned where one of our algorithms is asked for.

    Args:
        config: of a run of llm-foundry, which passes all of them through its transforms.

    Returns:
        Without such an algorithm, or with another dataloader than those of :data:`PRUNED_LOADERS`, the config itself.
    """
    loader = config.get("train_loader") or {}
    if loader.get("name") not in PRUNED_LOADERS or ALGORITHMS.keys().isdisjoint(config.get("algorithms") or {}):
        return config
    return {**config, "train_loader": {**loader, "name": PRUNED_LOADERS[loader["name"]]}}
