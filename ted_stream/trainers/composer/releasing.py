"""The dataset is whole again after every fit, one that ends in an exception or Ctrl-C included."""

from functools import wraps
from typing import Any

from composer import Trainer

from ted_stream.trainers.composer.data_pruning import DataPruning

__all__ = ["release_after_fit"]


def release_after_fit() -> None:
    """Let ``Trainer.fit`` release the pruning algorithms of its trainer, however it ends.

    Composer has no event for a fit that fails. The training set would stay pruned, and the next trainer would take the
    pruned epoch for a full one.
    """
    fit = Trainer.fit
    if getattr(fit, "releases_pruning", False):
        return

    @wraps(fit)
    def fit_and_release(self: Trainer, *args: Any, **kwargs: Any) -> None:
        try:
            return fit(self, *args, **kwargs)
        finally:
            for algorithm in self.state.algorithms:
                if isinstance(algorithm, DataPruning):
                    algorithm.release(self.state)

    vars(fit_and_release)["releases_pruning"] = True
    Trainer.fit = fit_and_release
