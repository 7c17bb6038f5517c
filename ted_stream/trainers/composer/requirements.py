"""What a run in Composer must be for its training set to be pruned; checked before its first batch."""

from typing import Any

from composer.algorithms import SelectiveBackprop, SeqLengthWarmup
from composer.core import Algorithm, State

from ted_stream.engine import PrunableData

__all__ = ["refuse_shared_evaluation", "refuse_wrong_use"]


def refuse_wrong_use(state: State, algorithm: Algorithm, pruning_class: type[Algorithm]) -> None:
    """Refuse other algorithms that this one cannot run beside.

    Raises:
        ValueError: naming the algorithm.
    """
    for other in state.algorithms:
        if isinstance(other, (SelectiveBackprop, SeqLengthWarmup)):
            raise ValueError(
                f"{type(other).__name__} cannot run beside {type(algorithm).__name__}: it changes the batch after "
                "its sample ids were read, so scores would go to the wrong samples. Remove one of the two."
            )
        if isinstance(other, pruning_class) and other is not algorithm:
            raise ValueError(
                f"{algorithm!r} and {other!r} would both prune the training set; pass one pruning algorithm to the "
                "Trainer."
            )


def refuse_shared_evaluation(state: State, data: PrunableData) -> None:
    """Refuse to evaluate on what is pruned. (Evaluating on a map-style dataset without its sampler is no problem.)

    Raises:
        ValueError: if an evaluator reads the training dataset, or shares its sampler.
    """
    for evaluator in state.evaluators:
        dataloader: Any = evaluator.dataloader.dataloader
        if getattr(dataloader, "dataset", None) is data:
            raise ValueError(
                f"The evaluator {evaluator.label!r} reads the training dataset, so it would see pruned epochs and "
                "batches with sample ids. Give it a dataset of its own."
            )
        if getattr(dataloader, "sampler", None) is data:
            raise ValueError(
                f"The evaluator {evaluator.label!r} shares the training data's PrunedSampler, so it would see pruned "
                "epochs. Give it a sampler of its own."
            )
