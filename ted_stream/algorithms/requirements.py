"""What a run must be for its training set to be pruned; checked before its first batch."""

from typing import Any

import torch
from composer.algorithms import SelectiveBackprop, SeqLengthWarmup
from composer.core import Algorithm, State, TimeUnit

from ted_stream.pruning import KeepRatioSchedule
from ted_stream.reading import Prunable

__all__ = ["prunable_dataset", "refuse_shared_evaluation", "refuse_too_few_samples", "refuse_wrong_use"]


def refuse_wrong_use(state: State, algorithm: Algorithm, pruning_class: type[Algorithm]) -> None:
    """Refuse runs that this pruning algorithm cannot plan or measure.

    Raises:
        ValueError: for a duration other than epochs, or another algorithm that it cannot run beside.
    """
    if state.max_duration is None or state.max_duration.unit != TimeUnit.EPOCH:
        raise ValueError(
            f"max_duration is {state.max_duration}, but pruning plans in epochs: each has its keep ratio. "
            "Pass max_duration in epochs, for example '90ep'."
        )
    for other in state.algorithms:
        if isinstance(other, (SelectiveBackprop, SeqLengthWarmup)):
            raise ValueError(
                f"{type(other).__name__} cannot run beside {type(algorithm).__name__}: it changes the batch after "
                "its sample ids were read, so scores would go to the wrong samples. Remove one of the two."
            )
        if isinstance(other, pruning_class) and other is not algorithm:
            raise ValueError(
                f"{type(algorithm).__name__} and {type(other).__name__} would both prune the training set; "
                "pass one pruning algorithm to the Trainer."
            )


def prunable_dataset(dataloader: Any) -> Prunable:
    """The dataset behind the training dataloader, if its samples can be pruned without losing any.

    Raises:
        ValueError: if it cannot; the message says what to change.
    """
    dataset = getattr(dataloader, "dataset", None)
    if not isinstance(dataloader, torch.utils.data.DataLoader) or not isinstance(dataset, Prunable):
        raise ValueError(
            f"The training data is a {type(dataloader).__name__} over a {type(dataset).__name__}, which cannot be "
            "pruned. Pass a torch DataLoader over a PrunedStreamingDataset, or make your own StreamingDataset "
            "prunable: class Mine(Prunable, YourDataset): pass."
        )
    if dataset.fixed_skip_list is not None:
        raise ValueError(
            "The training dataset has a fixed skip_list, which pruning while training would replace at every "
            "epoch. Drop skip_list= from the dataset, or drop the pruning algorithm."
        )
    if dataset.batching_method != "random":
        raise ValueError(
            f"The training dataset has batching_method={dataset.batching_method!r}, but only 'random' batching "
            "can be pruned: the others drop kept samples that do not fill a batch of one stream."
        )
    if dataset.num_canonical_nodes is None and dataset.shuffle_algo in ("py1s", "py2s"):
        raise ValueError(
            f"The training dataset has shuffle_algo={dataset.shuffle_algo!r} and no num_canonical_nodes, which "
            "streaming then sets to 64 per node: every pruned epoch would be padded with up to 64 repeats per "
            "node, and the sample order would hang on the number of nodes. Pass num_canonical_nodes, for example "
            "the number of physical nodes."
        )
    if dataloader.batch_size != dataset.batch_size:
        raise ValueError(
            f"The DataLoader's batch_size is {dataloader.batch_size}, the dataset's is {dataset.batch_size}. "
            "Streaming plans whole batches per worker, so samples would be lost at the end of shrunken epochs; "
            "pass the same batch_size to both."
        )
    return dataset


def refuse_shared_evaluation(state: State, dataset: Prunable) -> None:
    """Refuse to evaluate on the dataset that is pruned.

    Raises:
        ValueError: if an evaluator reads the training dataset.
    """
    for evaluator in state.evaluators:
        if getattr(evaluator.dataloader.dataloader, "dataset", None) is dataset:
            raise ValueError(
                f"The evaluator {evaluator.label!r} reads the training dataset, so it would see pruned epochs and "
                "batches with sample ids. Give it a dataset of its own."
            )


def refuse_too_few_samples(schedule: KeepRatioSchedule, num_epochs: int, dataset: Prunable) -> None:
    """Refuse a schedule whose smallest epoch cannot be spread over the canonical nodes.

    Raises:
        ValueError: naming the epoch.
    """
    smallest = min(range(num_epochs), key=lambda epoch: schedule.keep_ratio(epoch, num_epochs))
    kept = schedule.num_kept(smallest, num_epochs, dataset.full_epoch_size)
    if kept < dataset.canonical_nodes:
        raise ValueError(
            f"Epoch {smallest} is to keep {kept} samples, fewer than num_canonical_nodes = {dataset.canonical_nodes}, "
            "so they cannot be spread over the nodes. Prune less, or pass the dataset a smaller num_canonical_nodes."
        )
