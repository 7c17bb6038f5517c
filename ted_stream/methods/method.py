"""What a pruning method is: what it measures, remembers, keeps and weighs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning import ExponentialMean, Owned, Running
from ted_stream.pruning.measures import Measure
from ted_stream.skip_list import DatasetLayout

__all__ = ["Chosen", "Method"]


@dataclass(frozen=True)
class Chosen:
    """What a method chose among the samples that a rank owns.

    Args:
        keep: (n,) bool, marks of the samples to train on.
        inclusion: (n,) float32 in (0, 1], the probability with which each of these samples would have been kept, where
            a method draws with probabilities that it knows; ``None`` elsewhere. Only those of kept samples count.
        columns: (n,) float32 by name, columns of ``running()`` that the choice changes, which no measurement does. They
            are taken over when the epoch has been trained on.
    """

    keep: NDArray[np.bool_]
    inclusion: NDArray[np.float32] | None = None
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(ABC):
    """A pruning method: a frozen, validated value whose ``repr`` rebuilds it. It holds no state of a run.

    A subclass is a frozen dataclass; its fields are its settings, on the command line too: Python's own numbers, words
    and flags, refused by name at construction where they are wrong (``ted_stream.pruning.settings``). It must say what
    it keeps (:meth:`keep_ratio` or a rule's own count, and :meth:`choose`), and overrides what else differs: a method
    that measures nothing needs no more. Everything is called on all ranks alike, and is a function of its arguments:
    another object in another process gives the same. README.md beside this file writes one;
    ``ted_stream.testing.check_method`` checks all of this.

    Attributes:
        weighs_samples: whether :meth:`weigh` may give single samples weights of their own.
        needs_labels: whether :meth:`choose` looks at the classes of samples, which are taken from the targets of the
            batches that are trained on: one whole number for each sample, the same in every epoch.
    """

    weighs_samples: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    def measure(self) -> Measure | None:
        """What a batch yields per sample, made anew for each run, since it holds hooks; ``None`` measures nothing."""
        return None

    def running(self) -> Running:
        """What is remembered of every sample, and the scores that it makes."""
        return ExponentialMean()

    def given(self, layout: DatasetLayout) -> Mapping[str, NDArray[np.float32]]:
        """What is known of every sample before the run, (N,) float32 by name, NaN where nothing is.

        Args:
            layout: of the dataset; what was made for another one is refused.

        Raises:
            ValueError: if it belongs to another dataset.
            OSError: if it cannot be read.
        """
        del layout
        return {}

    @abstractmethod
    def keep_ratio(self, epoch: int, num_epochs: int) -> float | None:
        """r_t in (0, 1], the fraction to keep in epoch t (0-based) of a run of T epochs.

        ``None`` where :meth:`choose` decides how many in the epoch itself; a saving planned ahead is unknown then.
        """

    @abstractmethod
    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """Choose the samples of an epoch; the same ones however many ranks share them.

        What is drawn hangs on ``owned.seed``, ``epoch`` and the samples' ids alone (``owned.uniform()``). Scores and
        columns are left as they are. A sample that was never measured has the score NaN.

        Args:
            owned: this rank's samples, with collective operations over those of all ranks.
            epoch: 0-based.
            k: how many to keep over all ranks, exactly, at least one; ``None`` where :meth:`keep_ratio` is.
        """

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> float | NDArray[np.float32]:
        """The factor of each kept sample's loss.

        Args:
            owned: as in :meth:`choose`.
            chosen: what was chosen.
            ratio: r_t, or the fraction of all samples that was kept where :meth:`choose` decides on it; 1 where all
                were kept, which of a few samples a lower r_t may do too.

        Returns:
            One number for all samples, or (kept,) float32, one for each of this rank's kept samples in the order of
            their ids: finite and above zero. Arrays need ``weighs_samples``, and take 4 bytes per sample of the
            dataset on every rank.
        """
        del owned, chosen, ratio
        return 1.0
