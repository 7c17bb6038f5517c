"""What a pruned run tells Composer's loggers."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from composer.loggers import Logger, ProgressBarLogger

from ted_stream.engine import EpochRecord, PruningEngine

if TYPE_CHECKING:
    from ted_stream.trainers.composer.data_pruning import DataPruning

__all__ = ["boundary_metrics", "epoch_metrics", "hyperparameters", "show_progress"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def hyperparameters(settings: "DataPruning", engine: PruningEngine) -> dict[str, Any]:
    """The settings of the method and of the algorithm."""
    method = settings.method
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    values |= {"method": type(method).__name__, "folder": engine.folder.location}
    values |= {name: getattr(settings, name) for name in ("seed", "progress")}
    return {f"pruning/{name}": value for name, value in values.items()}


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


def show_progress(engine: PruningEngine, logger: Logger) -> None:
    """Show what is kept in the epoch's progress bar."""
    planned = engine.plan.save_ratio
    shown: dict[str, Any] = {
        "keep_ratio": f"{engine.records[-1].keep_ratio:.3f}",
        "kept": engine.records[-1].kept,
        "saved": f"{engine.save_ratio:.3f}" + ("" if planned is None else f" of {planned:.3f}"),
    }
    for destination in logger.destinations:
        if isinstance(destination, ProgressBarLogger):
            destination.log_to_pbar(shown)
