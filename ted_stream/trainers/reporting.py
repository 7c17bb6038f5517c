"""What a pruned run tells a trainer's loggers."""

from ted_stream.engine import EpochRecord, PruningEngine

__all__ = ["boundary_metrics", "epoch_metrics"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def boundary_metrics(engine: PruningEngine, record: EpochRecord) -> dict[str, float]:
    """What was chosen for an epoch; collective."""
    metrics = {
        "pruning/keep_ratio": record.keep_ratio,
        "pruning/kept_samples": record.kept,
        "pruning/returning_samples": record.returning,
        "pruning/unmeasured_samples": record.unmeasured,
        "pruning/boundary_seconds": record.boundary_seconds,
    }
    if engine.plan.save_ratio is not None:
        metrics["pruning/planned_save_ratio"] = engine.plan.save_ratio
    quantiles = engine.store.quantiles(_QUANTILES)
    return metrics | {f"pruning/score_q{round(100 * p):02d}": value for p, value in quantiles.items()}


def epoch_metrics(engine: PruningEngine, record: EpochRecord) -> dict[str, float]:
    """What an epoch forwarded."""
    return {
        "pruning/save_ratio": engine.save_ratio,
        "pruning/forwarded_samples": record.forwarded,
        "pruning/non_finite_measurements": record.non_finite,
    }
