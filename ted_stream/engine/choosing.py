"""An epoch's skip-list, from the scores of all ranks."""

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.engine.plan import RunPlan
from ted_stream.engine.record import SCORE_QUANTILES, EpochRecord
from ted_stream.engine.signs import scores_alike
from ted_stream.export.run_files import list_name
from ted_stream.methods import Chosen
from ted_stream.pruning import Owned
from ted_stream.skip_list import DatasetLayout, SkipList

__all__ = ["choose_skip_list", "make_record"]


def choose_skip_list(
    plan: RunPlan, owned: Owned, layout: DatasetLayout, run: str
) -> tuple[SkipList, float, dict[str, NDArray[np.float32]]]:
    """Let the method choose and weigh the samples of an epoch; collective, the same on every rank.

    Raises:
        ValueError: on every rank, if the method chose another number than k, or gave on one of them another kind of
            value than it must.

    Returns:
        The skip-list; the factor of every sample's loss beside the weights of single samples in the list; and the
        columns of running scores that the choice changes.
    """
    epoch = owned.epoch
    k, ratio = plan.kept(epoch), plan.keep_ratio(epoch)
    chosen = plan.method.choose(owned, epoch, k)
    _refuse(plan, owned, _fault_of_choice(chosen, owned))
    kept = owned.count(chosen.keep)
    if kept < 1 or (k is not None and kept != k):
        raise _fault(plan, f"{kept} samples to keep in epoch {epoch}, not {'at least one' if k is None else k}")
    if ratio is None:
        ratio = kept / owned.num_samples
    # Of a few samples ⌈r_t·N⌉ may be all: then nothing is pruned, whatever r_t is.
    weights = plan.method.weigh(owned, chosen, 1.0 if kept == owned.num_samples else ratio)
    _refuse(plan, owned, _fault_of_weights(plan, weights, int(np.count_nonzero(chosen.keep))))
    loss_factor, sample_weights = _joined(plan, owned, weights)
    skip_list = SkipList.from_keep_bits(
        layout,
        _gather_bits(owned, chosen.keep),
        epoch=epoch,
        keep_ratio=ratio,
        method=type(plan.method).__name__,
        run=run,
        weights=sample_weights,
    )
    return skip_list, loss_factor, dict(chosen.columns)


def _fault_of_choice(chosen: Any, owned: Owned) -> str | None:
    size = len(owned)
    if not isinstance(chosen, Chosen):
        return f"a choice that is a {type(chosen).__name__}, not a Chosen"
    keep: Any = chosen.keep
    if not isinstance(keep, np.ndarray):
        return f"keep as a {type(keep).__name__}, not a NumPy array of shape ({size},) and dtype bool"
    if keep.shape != (size,) or keep.dtype != np.bool_:
        return f"keep of shape {keep.shape} and dtype {keep.dtype}, not ({size},) bool"
    for name, column in chosen.columns.items():
        if name not in owned.columns:
            return f"the column {name!r}, which its running() does not have: {', '.join(owned.columns)}"
        if column.shape != (size,) or column.dtype != np.float32:
            return f"the column {name!r} of shape {column.shape} and dtype {column.dtype}, not ({size},) float32"
    return None


def _fault_of_weights(plan: RunPlan, weights: Any, kept: int) -> str | None:
    if isinstance(weights, np.ndarray):
        if not plan.method.weighs_samples:
            return "weights of single samples, without weighs_samples = True"
        if weights.shape != (kept,) or weights.dtype != np.float32:
            return f"weights of shape {weights.shape} and dtype {weights.dtype}, not ({kept},) float32"
        wrong = weights[~(np.isfinite(weights) & (weights > 0))]
        return f"{len(wrong)} weights that are not finite and above 0, such as {wrong[0]}" if len(wrong) else None
    if isinstance(weights, bool) or not isinstance(weights, Real):
        return f"a weight of type {type(weights).__name__}, not a number or a NumPy array of float32"
    if not 0 < float(weights) < math.inf:
        return f"the weight {weights} for all samples, not one that is finite and above 0"
    return None


def _joined(plan: RunPlan, owned: Owned, weights: float | NDArray[np.float32]) -> tuple[float, Any]:
    """The factor of every sample's loss, and the weights of single samples, if they differ from 1, of all ranks.

    Raises:
        ValueError: if the ranks gave different kinds, or different numbers for all samples.
    """
    is_array = isinstance(weights, np.ndarray)
    mine = [1.0 if is_array else float(weights), is_array, is_array and bool(np.any(weights != 1))]
    ranks = np.stack(owned.communicator.all_gather(np.array(mine, np.float64)))
    if len({(factor, array) for factor, array, _ in ranks.tolist()}) > 1:
        given = ["an array" if array else f"{factor}" for factor, array, _ in ranks.tolist()]
        raise _fault(plan, f"the ranks different weights: {', '.join(given)}")
    differ = bool(ranks[:, 2].any())
    if not isinstance(weights, np.ndarray):
        return float(weights), None
    return 1.0, np.concatenate(owned.communicator.all_gather(weights)) if differ else None


def _refuse(plan: RunPlan, owned: Owned, fault: str | None) -> None:
    """Refuse what the method gave on a rank, on all of them: one alone would leave the others waiting for it.

    Raises:
        ValueError: with the fault, or on ranks that have none, that another has one.
    """
    faults = np.concatenate(owned.communicator.all_gather(np.array([fault is not None], np.int64)))
    if faults.any():
        others = f"something else on rank {int(np.flatnonzero(faults)[0])} than it must, and a fault is told there"
        raise _fault(plan, fault or others)


def _fault(plan: RunPlan, what: str) -> ValueError:
    return ValueError(f"{plan.method!r} gave {what}; the epoch would be another than planned. Mend the method.")


def _gather_bits(owned: Owned, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(⌈N / 8⌉,) uint8 from the owners' masks: one bit per sample is all that every rank holds of all samples."""
    bits = np.zeros(-(-owned.num_samples // 8), np.uint8)
    start, shift = divmod(owned.first_id, 8)
    mine = np.packbits(np.concatenate([np.zeros(shift, np.bool_), mask]))
    bits[start : start + len(mine)] = mine
    return owned.communicator.all_reduce_sum(bits)  # the owners' bits are disjoint, in a shared byte too


def make_record(owned: Owned, skip_list: SkipList, previous: SkipList | None, loss_factor: float) -> EpochRecord:
    """What is known of an epoch at its start; collective.

    Args:
        owned: what it was chosen from.
        skip_list: its own.
        previous: that of the epoch before, if there was one.
        loss_factor: see :class:`EpochRecord`.
    """
    size, unmeasured = owned.num_samples, owned.count(np.isnan(owned.scores))
    shares = SCORE_QUANTILES if unmeasured < size else ()
    quantiles = zip(map(str, shares), owned.quantiles(owned.scores, shares), strict=True)
    return EpochRecord(
        epoch=owned.epoch,
        keep_ratio=skip_list.keep_ratio,
        kept=skip_list.num_kept,
        returning=0 if previous is None else _num_returning(previous, skip_list),
        expected_returning=0.0 if previous is None else skip_list.num_kept * (size - previous.num_kept) / size,
        unmeasured=unmeasured,
        scores_alike=scores_alike(owned),
        score_quantiles=dict(quantiles),
        skip_list=list_name(owned.epoch),
        digest=skip_list.digest,
        loss_factor=loss_factor,
    )


def _num_returning(before: SkipList, now: SkipList) -> int:
    """How many samples the list keeps that the one before pruned."""
    pairs = zip(before.pruned, now.pruned, strict=True)
    return sum(was.difference_cardinality(pruned) for was, pruned in pairs)
