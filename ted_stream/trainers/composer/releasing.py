"""What no event of Composer tells: what a fit does to batches, and that it has ended, if by an exception or Ctrl-C."""

from functools import wraps
from typing import Any

from composer import Trainer

from ted_stream.trainers.composer.data_pruning import DataPruning, unchanged

__all__ = ["release_after_fit"]


def release_after_fit() -> None:
    """Let ``Trainer.fit`` release the pruning algorithms of its trainer, however it ends.

    Composer has no event for a fit that fails. The training set would stay pruned, and the next trainer would take the
    pruned epoch for a full one. And an algorithm is not shown the DataSpec, whose ``batch_transforms`` come before the
    first event that has the batch.
    """
    fit = Trainer.fit
    if getattr(fit, "releases_pruning", False):
        return

    @wraps(fit)
    def fit_and_release(self: Trainer, *args: Any, **kwargs: Any) -> None:
        def batch_transform(batch: Any) -> Any:
            spec = self._train_data_spec  # which the fit may be given anew
            assert spec is not None, "by the time of the first event"
            return spec.batch_transforms(batch)

        for algorithm in _pruning(self):
            algorithm.batch_transform = batch_transform
        try:
            return fit(self, *args, **kwargs)
        finally:
            for algorithm in _pruning(self):
                algorithm.batch_transform = unchanged
                algorithm.release(self.state)

    vars(fit_and_release)["releases_pruning"] = True
    Trainer.fit = fit_and_release


def _pruning(trainer: Trainer) -> list[DataPruning]:
    return [algorithm for algorithm in trainer.state.algorithms if isinstance(algorithm, DataPruning)]
