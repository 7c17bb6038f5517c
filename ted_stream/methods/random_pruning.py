"""A fresh random subset every epoch: the baseline at an equal saving."""

from dataclasses import dataclass

from ted_stream.methods.method import Chosen
from ted_stream.methods.scheduled import CorrectedMethod
from ted_stream.pruning import Owned, UniformSample

__all__ = ["RandomPruning"]


@dataclass(frozen=True, kw_only=True)
class RandomPruning(CorrectedMethod):
    """A fresh uniform sample every epoch, under any keep-ratio schedule (RS2: Okanovic et al., 2023).

    With ``schedule='constant'`` and no annealing it is the "Random*" of the literature. See :class:`CorrectedMethod`
    and :class:`ScheduledMethod` for the settings.
    """

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        """The k highest variates of (seed, epoch, id)."""
        del epoch
        assert k is not None
        return Chosen(owned.select(UniformSample(seed=owned.seed), k))
