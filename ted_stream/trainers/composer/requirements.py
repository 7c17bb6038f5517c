"""What a run must be for its training set to be pruned; checked before its first batch."""

from typing import Any
from warnings import warn

from composer.algorithms import SelectiveBackprop, SeqLengthWarmup
from composer.core import Algorithm, State
from torch import nn
from torch.utils.data import DataLoader

from ted_stream.engine import PrunableData, PruningEngine
from ted_stream.engine.batch_ids import order_difference
from ted_stream.pruning import num_kept

__all__ = [
    "refuse_other_order",
    "refuse_other_progress",
    "refuse_shared_evaluation",
    "refuse_too_few_samples",
    "refuse_wrong_use",
    "warn_of_single_rows",
]


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


def refuse_too_few_samples(engine: PruningEngine, loader: DataLoader) -> None:
    """Refuse a run whose smallest epoch cannot be spread over the canonical nodes, or over ranks and batches.

    Raises:
        ValueError: naming the epoch.
    """
    smallest = engine.plan.smallest_epoch
    if smallest is None:
        return
    epoch, ratio = smallest
    kept = num_kept(ratio, engine.data.full_epoch_size)
    fewest, reason = engine.data.fewest_for(loader)
    if kept < fewest:
        raise ValueError(f"Epoch {epoch} is to keep {kept} samples, but {reason}")


def refuse_other_order(loaded: dict[str, Any], order: dict[str, Any], epoch: int) -> None:
    """Refuse to go on in the middle of an epoch whose samples would now come in another order.

    Args:
        loaded: the checkpoint's state.
        order: what the order hangs on in this run.
        epoch: that the checkpoint is in.

    Raises:
        ValueError: naming what differs, with both values.
    """
    if loaded["order"] != order:
        raise ValueError(
            f"The checkpoint is in the middle of epoch {epoch}, and the order of its samples hangs on what has changed "
            f"since: {order_difference(loaded['order'], order)}. Samples would be trained on twice or not at all in "
            "the rest of the epoch. Change it back, or load a checkpoint of an epoch's end instead."
        )


def refuse_other_progress(loaded: dict[str, Any], progress: str, allow_other_settings: bool) -> None:
    """Refuse to go on with learning-rate schedules that have come elsewhere.

    Args:
        loaded: the checkpoint's state; one of before may not tell.
        progress: of this run.
        allow_other_settings: pass over it.

    Raises:
        ValueError: naming both values.
    """
    before = loaded.get("progress", progress)
    if before != progress and not allow_other_settings:
        raise ValueError(
            f"The checkpoint was made with progress={before!r}, but this run has progress={progress!r}: the learning "
            "rate would jump to where the other one has it. Pass the progress of the checkpoint, start a new run, or "
            "pass allow_other_settings=True if you want the jump."
        )


def warn_of_single_rows(state: State, engine: PruningEngine, loader: DataLoader, *, most_batches: int | None) -> None:
    """Warn of epochs to come that end with a batch of one row, under a model with BatchNorm, where full ones do not.

    Every rank gets equally many samples, from a dataset as from a sampler, so that it is one row on all of them.

    Args:
        state: of the trainer.
        engine: that has planned the run; counts that it does not know in advance go unwarned.
        loader: of the training set.
        most_batches: the trainer's own bound on those of an epoch.
    """
    data, plan, size = engine.data, engine.plan, loader.batch_size
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # SyncBatchNorm has the rows of all ranks
    if size is None or not any(isinstance(module, kinds) for module in state.model.modules()):
        return
    if data.full_epoch_size != data.layout.num_samples:
        return  # streams by proportions: how many of the kept samples an epoch draws is not known

    def has_single_row(kept: int, share: float = 1.0) -> bool:
        full, rest = divmod(data.samples_of_rank(kept), size)
        batches = [size] * bool(full)
        length = full + bool(rest) if most_batches is None else min(full + bool(rest), most_batches)
        if rest and not loader.drop_last and round(length * share) > full:
            batches.append(rest)
        return any(_smallest_part(rows, state.device_train_microbatch_size) == 1 for rows in batches)

    begun = {record.epoch: record.kept for record in engine.records}
    epochs = range(state.timestamp.epoch.value, plan.epochs)
    planned = {epoch: begun.get(epoch, plan.kept(epoch)) for epoch in epochs}
    single = {epoch: kept for epoch, kept in planned.items() if kept and has_single_row(kept, plan.share(epoch))}
    if single and not has_single_row(data.full_epoch_size):
        epoch, kept = next(iter(single.items()))
        more = f" (and of {len(single) - 1} more epochs)" if len(single) > 1 else ""
        warn(
            f"Epoch {epoch} is to keep {kept} samples: with batch_size={size} on {engine.ranks.world_size} ranks, a "
            f"batch or microbatch of it{more} has one row, as no full epoch has. BatchNorm has no variance over one "
            "row, and BatchNorm1d stops the run there ('Expected more than 1 value per channel'). Choose another "
            "batch_size or prune_ratio; with a PrunedSampler, drop_last=True for the DataLoader will do.",
            UserWarning,
            stacklevel=2,
        )


def _smallest_part(rows: int, microbatch_size: Any) -> int:
    """The rows of the smallest microbatch that a batch is split into."""
    if not isinstance(microbatch_size, int):
        return rows
    return rows % microbatch_size or microbatch_size
