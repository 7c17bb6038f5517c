"""The numbers of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.pruning.generalization import cosine, interpolated, least_kept, mean_over, pearson
from ted_stream.skip_list import SkipList

from .evaluation import Evaluation, Progress
from .plan import Plan
from .results import QUANTILES, GradientRow, LossRow, Point, RunAnalysis, Spread
from .runs import Run

__all__ = ["analysed"]

# Of hashes that decide what a method leaves open: others than those of methods, whose seeds count from 0.
TIES, BASELINE = 0x7E0, 0xBA5E


def analysed(plan: Plan, name: str, told: Progress) -> RunAnalysis:
    """All that is planned of a run.

    Args:
        plan: of the run.
        name: that tells it from others.
        told: see `Evaluation`.

    Raises:
        ConfigError: its weights, lists and data do not fit each other.
    """
    run, evaluation = plan.run, Evaluation(plan.run, told)
    layout = evaluation.layout
    found = RunAnalysis(
        name=name,
        folder=str(run.folder),
        method=run.method,
        dataset=layout.fingerprint,
        samples=layout.num_samples,
        epochs=run.num_epochs,
    )
    times, smallest = _times_kept(run, evaluation)
    rarest = least_kept(times, layout.num_samples - smallest, seed=TIES)
    if plan.parts & {"losses", "gradients"}:
        found = _looked(plan, found, evaluation, times, rarest)
    if plan.ends is not None:
        found = _interpolated(plan, plan.ends, found, evaluation, rarest)
    return replace(found, notes=tuple(plan.notes))


def _times_kept(run: Run, evaluation: Evaluation) -> tuple[NDArray[np.int32], int]:
    """How many epochs kept each sample, (N,), and how many samples the smallest of them kept."""
    times, smallest = np.zeros(evaluation.layout.num_samples, np.int32), evaluation.layout.num_samples
    for epoch in run.pruned_epochs():
        skip_list = run.skip_list(epoch, evaluation.layout)
        assert skip_list is not None
        times += skip_list.keep_mask()
        smallest = min(smallest, skip_list.num_kept)
    return times, smallest


# Losses and gradients ----------------------------------------------------------------------------------------------


def _looked(
    plan: Plan, found: RunAnalysis, evaluation: Evaluation, times: NDArray[np.int32], rarest: NDArray[np.bool_]
) -> RunAnalysis:
    run, layout = plan.run, evaluation.layout
    rows, gradients, losses = [], [], None
    for after in plan.after:
        coming = run.skip_list(after, layout) if "gradients" in plan.parts else None
        coefficients = _coefficients(coming, after)
        if "losses" not in plan.parts and not coefficients:
            continue
        looked = evaluation.look(evaluation.weights(after), coefficients)
        losses = looked.losses
        if "losses" in plan.parts:
            rows.append(_loss_row(after, losses, run.skip_list(max(0, after - 1), layout), rarest))
        if coefficients:
            assert coming is not None
            gradients.append(_gradient_row(after, coming, looked.gradients))
    if "gradients" in plan.parts and not gradients:
        plan.notes.append("after none of these checkpoints an epoch left samples out, so no gradients are compared.")
    spread = {}
    if "losses" in plan.parts and losses is not None and rarest.any():
        spread = {"least_kept": _spread(losses, times, rarest), "most_kept": _spread(losses, times, ~rarest)}
    return replace(found, losses=tuple(rows), gradients=tuple(gradients), **spread)


def _coefficients(coming: SkipList | None, after: int) -> dict[str, NDArray[np.floating]]:
    """What each sample weighs in each gradient; nothing where the epoch takes all samples alike."""
    if coming is None or (coming.num_pruned == 0 and coming.weights is None) or coming.num_kept == 0:
        return {}
    keep = coming.keep_mask()
    uniform = least_kept(np.zeros(len(keep), np.int32), coming.num_kept, seed=BASELINE + after)
    found = {"all": np.ones(len(keep)), "kept": keep.astype(np.float64), "random": uniform.astype(np.float64)}
    if coming.weights is not None:
        found["weighted"] = np.nan_to_num(coming.weights_by_id()).astype(np.float64)
    return found


def _loss_row(
    after: int, losses: NDArray[np.float32], skip_list: SkipList | None, rarest: NDArray[np.bool_]
) -> LossRow:
    keep = np.ones(len(losses), np.bool_) if skip_list is None else skip_list.keep_mask()
    pruned_at_all = bool(rarest.any())
    return LossRow(
        after=after,
        kept=int(keep.sum()),
        loss=_finite(mean_over(losses, np.ones_like(keep))),
        kept_loss=_finite(mean_over(losses, keep)),
        pruned_loss=_finite(mean_over(losses, ~keep)),
        least_kept_loss=_finite(mean_over(losses, rarest)) if pruned_at_all else None,
        most_kept_loss=_finite(mean_over(losses, ~rarest)) if pruned_at_all else None,
    )


def _gradient_row(after: int, coming: SkipList, gradients: Mapping[str, Tensor]) -> GradientRow:
    whole, kept, weighted = gradients["all"], gradients["kept"], gradients.get("weighted")
    norms = [float(sum_.norm()) for sum_ in (kept / coming.num_kept, whole / coming.num_samples)]
    return GradientRow(
        after=after,
        kept=coming.num_kept,
        pearson=pearson(kept, whole),
        cosine=cosine(kept, whole),
        norm_ratio=_finite(norms[0] / norms[1]) if norms[1] else None,
        weighted_pearson=None if weighted is None else pearson(weighted, whole),
        weighted_cosine=None if weighted is None else cosine(weighted, whole),
        random_pearson=pearson(gradients["random"], whole),
        random_cosine=cosine(gradients["random"], whole),
    )


def _spread(losses: NDArray[np.float32], times: NDArray[np.int32], members: NDArray[np.bool_]) -> Spread:
    count = int(members.sum())
    quantiles = np.quantile(losses[members].astype(np.float64), QUANTILES) if count else [math.nan] * len(QUANTILES)
    return Spread(
        samples=count,
        mean_times_kept=float(times[members].mean()) if count else 0.0,
        mean=_finite(mean_over(losses, members)),
        quantiles=tuple(_finite(float(value)) for value in quantiles),
    )


# Interpolation -----------------------------------------------------------------------------------------------------


def _interpolated(
    plan: Plan, ends: tuple[int, int], found: RunAnalysis, evaluation: Evaluation, rarest: NDArray[np.bool_]
) -> RunAnalysis:
    start, end = (evaluation.weights(after) for after in ends)
    points = []
    for at in range(plan.points):
        alpha = at / (plan.points - 1)
        weights = interpolated(start, end, alpha)
        losses = evaluation.look(weights).losses
        points.append(
            Point(
                alpha=alpha,
                loss=_finite(mean_over(losses, np.ones_like(rarest))),
                least_kept_loss=_finite(mean_over(losses, rarest)),
                test={name: _finite(value) for name, value in evaluation.test(weights).items()},
            )
        )
    return replace(found, interpolation=tuple(points), interpolated=ends)


def _finite(value: float | None) -> float | None:
    """The number, unless JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None
