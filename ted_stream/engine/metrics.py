"""What is told of a run's epochs while it goes on: numbers for loggers, a line for people."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from ted_stream.engine.record import EpochRecord, forwarded_in
from ted_stream.export.history import EpochChange, epoch_changes

if TYPE_CHECKING:
    from ted_stream.engine.engine import PruningEngine

__all__ = ["boundary_metrics", "epoch_metrics", "tell_epoch"]

log = logging.getLogger(__name__)


def boundary_metrics(engine: PruningEngine, record: EpochRecord) -> dict[str, float]:
    """What was chosen for an epoch."""
    change = _change(engine)
    metrics = {
        "pruning/keep_ratio": record.keep_ratio,
        "pruning/kept_ratio": change.real,
        "pruning/kept_samples": record.kept,
        "pruning/returning_samples": record.returning,
        "pruning/unmeasured_samples": record.unmeasured,
        "pruning/boundary_seconds": record.boundary_seconds,
    }
    if change.newly_pruned is not None:
        metrics["pruning/newly_pruned_samples"] = change.newly_pruned
    if engine.plan.save_ratio is not None:
        metrics["pruning/planned_save_ratio"] = engine.plan.save_ratio
    quantiles = record.score_quantiles
    return metrics | {f"pruning/score_q{round(100 * float(p)):02d}": value for p, value in quantiles.items()}


def epoch_metrics(engine: PruningEngine, record: EpochRecord) -> dict[str, float]:
    """What an epoch forwarded, and what the run has saved by its end."""
    saved, seconds = _saved(engine)
    metrics = {
        "pruning/save_ratio": engine.save_ratio,
        "pruning/saved_samples": saved,
        "pruning/forwarded_samples": record.forwarded,
        "pruning/non_finite_measurements": record.non_finite,
    }
    if seconds is not None:
        metrics["pruning/estimated_saved_seconds"] = seconds
    return metrics


def tell_epoch(engine: PruningEngine) -> None:
    """Log what the last epoch kept, by what, and what the run has saved by its end; on rank 0 alone."""
    if engine.ranks.rank == 0:
        log.info("%s", _line(engine))


def _line(engine: PruningEngine) -> str:
    plan, record, change = engine.plan, engine.records[-1], _change(engine)
    planned = "its own count" if plan.keep_ratio(record.epoch) is None else "as planned"
    parts = [
        f"epoch {record.epoch} ({record.epoch + 1} of {plan.epochs}): {type(engine.method).__name__} kept "
        f"{record.kept:,} of {plan.num_samples:,} samples (ratio {record.keep_ratio:.3f}, {planned})",
        f"{record.returning:,} returned",
    ]
    if change.newly_pruned is not None:
        parts.append(f"{change.newly_pruned:,} newly pruned")
    saved = f"saved so far {engine.save_ratio:.1%} of the samples"
    if plan.save_ratio is not None:
        saved += f" ({plan.save_ratio:.1%} planned for the run)"
    seconds = _saved(engine)[1]
    if seconds:
        saved += f", an estimated {_duration(seconds)}"
    return f"{', '.join(parts)}; {saved}"


def _saved(engine: PruningEngine) -> tuple[int, float | None]:
    """What full data would have forwarded beyond what was, and the seconds that these would take at the run's pace."""
    forwarded = forwarded_in(engine.records)
    samples, pace = engine.plan.full_samples(forwarded) - sum(forwarded.values()), engine.pace.seconds_per_sample
    return samples, None if pace is None else samples * pace


def _change(engine: PruningEngine) -> EpochChange:
    """Of the last epoch beside the one before."""
    last = [asdict(record) for record in engine.records[-2:]]
    return epoch_changes({"samples": engine.plan.num_samples, "epochs": last})[-1]


def _duration(seconds: float) -> str:
    """For people: ``12.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
