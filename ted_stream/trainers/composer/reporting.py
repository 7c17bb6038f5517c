"""What a pruned run tells Composer's loggers alone."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from composer.loggers import Logger, ProgressBarLogger

from ted_stream.engine import PruningEngine

if TYPE_CHECKING:
    from ted_stream.trainers.composer.data_pruning import DataPruning

__all__ = ["hyperparameters", "show_progress"]


def hyperparameters(settings: "DataPruning", engine: PruningEngine) -> dict[str, Any]:
    """The settings of the method and of the algorithm."""
    method = settings.method
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    values |= {"method": type(method).__name__, "folder": engine.folder.location}
    values |= {"seed": settings.seed, "progress": settings.progress.name}
    return {f"pruning/{name}": value for name, value in values.items()}


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
