"""What a run must be for its training set to be pruned, whatever trains it; checked before its first batch."""

from typing import Any
from warnings import warn

from torch import nn
from torch.utils.data import DataLoader

from ted_stream.engine import Progress, PruningEngine, checked_progress
from ted_stream.engine.batch_ids import order_difference
from ted_stream.engine.plan import RunPlan
from ted_stream.methods import Method
from ted_stream.pruning.settings import check_flag

__all__ = [
    "check_settings",
    "checked_output_layer",
    "refuse_other_order",
    "warn_of_single_rows",
]


def check_settings(
    method: object, progress: object, allow_other_settings: object, overwrite: object = False
) -> Progress:
    """Refuse settings that no run can have.

    Returns:
        By what learning rates come on.

    Raises:
        TypeError: for one of another type.
        ValueError: for another progress than there is, or one that the method cannot have.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method is {method!r}, but it must be a pruning method, for example TED(prune_ratio=0.7).")
    check_flag("allow_other_settings", allow_other_settings, fix="whether to resume what other settings made.")
    check_flag("overwrite", overwrite, fix="whether to replace an earlier run in the folder.")
    plan = RunPlan(method=method, num_samples=1, epochs=2)
    return checked_progress(progress, plan)


def checked_output_layer(output_layer: object, method: Method) -> str | None:
    """The output layer as the user named it, with a warning where the method needs none.

    Raises:
        TypeError: if it is no text.
        ValueError: if it is empty.
    """
    if output_layer is None:
        return None
    if not isinstance(output_layer, str):
        raise TypeError(f"output_layer is {output_layer!r}, but it must be the dotted name of a module, or None.")
    if not output_layer.strip():
        raise ValueError(
            f"output_layer is {output_layer!r}, but it must be the dotted name of a module, for example 'head'. Leave "
            "it out where the layer that makes the logits is to be found."
        )
    measure = method.measure()
    if not method.weighs_samples and (measure is None or not measure.needs_layer):
        warn(
            f"output_layer={output_layer!r} has no effect: {method!r} measures and weighs nothing at that layer. "
            "Leave it out.",
            UserWarning,
            stacklevel=3,
        )
    return output_layer


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


def warn_of_single_rows(
    model: nn.Module,
    engine: PruningEngine,
    loader: DataLoader,
    epoch: int,
    microbatch_size: float | str | None = None,
    most_batches: int | None = None,
) -> None:
    """Warn of epochs to come that end with a batch of one row, under a model with BatchNorm, where full ones do not.

    Every rank gets equally many samples, from a dataset as from a sampler, so that it is one row on all of them.

    Args:
        model: that is trained.
        engine: that has planned the run; counts that it does not know in advance go unwarned.
        loader: of the training set.
        epoch: the coming one.
        microbatch_size: rows that the trainer splits a batch into, where it does.
        most_batches: the trainer's own bound on those of an epoch.
    """
    data, plan, size = engine.data, engine.plan, loader.batch_size
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # SyncBatchNorm has the rows of all ranks
    if size is None or not any(isinstance(module, kinds) for module in model.modules()):
        return
    if data.full_epoch_size != data.layout.num_samples:
        return  # streams by proportions: how many of the kept samples an epoch draws is not known

    def has_single_row(kept: int, share: float = 1.0) -> bool:
        full, rest = divmod(data.samples_of_rank(kept), size)
        batches = [size] * bool(full)
        length = full + bool(rest) if most_batches is None else min(full + bool(rest), most_batches)
        if rest and not loader.drop_last and round(length * share) > full:
            batches.append(rest)
        return any(_smallest_part(rows, microbatch_size) == 1 for rows in batches)

    begun = {record.epoch: record.kept for record in engine.records}
    epochs = range(epoch, plan.epochs)
    planned = {at: begun.get(at, plan.kept(at)) for at in epochs}
    single = {at: kept for at, kept in planned.items() if kept and has_single_row(kept, plan.share(at))}
    if single and not has_single_row(data.full_epoch_size):
        first, kept = next(iter(single.items()))
        more = f" (and of {len(single) - 1} more epochs)" if len(single) > 1 else ""
        warn(
            f"Epoch {first} is to keep {kept} samples: with batch_size={size} on {engine.ranks.world_size} ranks, a "
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
