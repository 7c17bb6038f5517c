"""An epoch's skip-list, from the scores of all ranks."""

import numpy as np
from numpy.typing import NDArray

from ted_stream.engine.plan import RunPlan
from ted_stream.pruning import Owned, ScoreStore
from ted_stream.skip_list import DatasetLayout, SkipList

__all__ = ["choose_skip_list", "num_returning"]


def choose_skip_list(
    plan: RunPlan, store: ScoreStore, layout: DatasetLayout, epoch: int, seed: int, run: str
) -> tuple[SkipList, float]:
    """Let the method choose and weigh the samples of an epoch; collective, the same on every rank.

    Raises:
        ValueError: if the method chose another number than k, or gave arrays of another kind than it must.

    Returns:
        The skip-list, and the factor of every sample's loss beside the weights of single samples in the list.
    """
    owned = Owned(store, epoch=epoch, seed=seed)
    k, ratio = plan.kept(epoch), plan.keep_ratio(epoch)
    chosen = plan.method.choose(owned, epoch, k)
    if chosen.keep.shape != (len(owned),) or chosen.keep.dtype != np.bool_:
        raise _fault(plan, f"keep of shape {chosen.keep.shape} and dtype {chosen.keep.dtype}, not ({len(owned)},) bool")
    kept = owned.count(chosen.keep)
    if kept < 1 or (k is not None and kept != k):
        raise _fault(plan, f"{kept} samples to keep in epoch {epoch}, not {'at least one' if k is None else k}")
    if ratio is None:
        ratio = kept / store.num_samples
    weights = plan.method.weigh(owned, chosen, ratio)
    loss_factor, sample_weights = 1.0, None
    if not isinstance(weights, np.ndarray):
        loss_factor = float(weights)
    elif not plan.method.weighs_samples:
        raise _fault(plan, "weights of single samples, without weighs_samples = True")
    elif owned.count(weights != 1):
        sample_weights = np.concatenate(store.communicator.all_gather(weights))
    skip_list = SkipList.from_keep_bits(
        layout,
        _gather_bits(store, chosen.keep),
        epoch=epoch,
        keep_ratio=ratio,
        method=type(plan.method).__name__,
        run=run,
        weights=sample_weights,
    )
    return skip_list, loss_factor


def _fault(plan: RunPlan, what: str) -> ValueError:
    return ValueError(f"{plan.method!r} gave {what}; the epoch would be another than planned. Mend the method.")


def _gather_bits(store: ScoreStore, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(⌈N / 8⌉,) uint8 from the owners' masks: one bit per sample is all that every rank holds of all samples."""
    bits = np.zeros(-(-store.num_samples // 8), np.uint8)
    start, shift = divmod(store.first_id, 8)
    mine = np.packbits(np.concatenate([np.zeros(shift, np.bool_), mask]))
    bits[start : start + len(mine)] = mine
    return store.communicator.all_reduce_sum(bits)  # the owners' bits are disjoint, in a shared byte too


def num_returning(before: SkipList, now: SkipList) -> int:
    """How many samples the list keeps that the one before pruned."""
    pairs = zip(before.pruned, now.pruned, strict=True)
    return sum(was.difference_cardinality(pruned) for was, pruned in pairs)
