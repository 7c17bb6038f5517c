"""Ways to keep k samples by their scores, over all samples or within shares of the classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.method import Chosen
from ted_stream.pruning import HighestScores, LowestScores, Owned, SampledScores, Selection, UniformSample
from ted_stream.pruning.running import Columns, Running, measured_once
from ted_stream.pruning.sampling import inclusion_probabilities, pareto_keys, proportional

__all__ = [
    "CHOICES",
    "CLASS_SHARES",
    "WithCredit",
    "choose_by",
    "choose_evenly",
    "choose_uniformly",
    "choose_weighted",
    "class_counts",
    "clipped",
    "inverse_probabilities",
    "known_deviations",
    "sizes_of",
]

CHOICES = ("highest", "lowest", "sampled", "even")
CLASS_SHARES = ("as_they_are", "sqrt", "equal", "by_loss")

_LEAST = 1e-6  # of the mean: a size of zero has no probability
_SPREAD = 1 - 2.0**-10  # of phases: less than a visit, by more than rounding makes of equal credits


@dataclass(frozen=True)
class WithCredit(Running):
    """What another :class:`Running` remembers, and every sample's credit and phase (see :func:`choose_evenly`).

    Args:
        running: the other.
    """

    running: Running

    @property
    def relative(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The other's."""
        return self.running.relative

    @property
    def window(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The other's."""
        return self.running.window

    @property
    def columns(self) -> tuple[str, ...]:
        """The other's, ``credit`` and ``phase``."""
        return (*self.running.columns, "credit", "phase")

    def fold(self, columns: Columns, rows: NDArray[np.int64], values: NDArray[np.float64], epoch: int) -> None:
        """The other's."""
        self.running.fold(columns, rows, values, epoch)

    def scores(self, columns: Columns) -> NDArray[np.float32]:
        """The other's."""
        return self.running.scores(columns)


def class_counts(owned: Owned, k: int, shares: str, losses: NDArray[np.floating] | None = None) -> NDArray[np.int64]:
    """How many of k samples every class gets; none more than it has, the rest is shared again.

    Samples whose class is not known yet get their part of all samples, k·n/N.

    Args:
        owned: with labels.
        k: of all samples.
        shares: in proportion to the n_c samples of a class, ``as_they_are``; to their root, ``sqrt``; ``equal``; or
            ``by_loss``, √(L_c·n_c / N), L_c the class's mean loss (RCAP: Hassan, Khare and Paik, 2025, Theorem 3.1).
        losses: (n,) for ``by_loss``; NaN do not count.

    Returns:
        (C + 1,) int64, as :attr:`Owned.class_sizes`.
    """
    sizes = owned.class_sizes
    both = np.array([sizes[:-1].sum(), sizes[-1]])
    known, unknown = proportional(both.astype(np.float64), k, both)
    if sizes[-1] and not unknown:  # without any, the last few would stay unknown
        known, unknown = k - 1, 1
    weights = sizes[:-1].astype(np.float64)
    if shares == "sqrt":
        weights = np.sqrt(weights)
    elif shares == "equal":
        weights = (weights > 0).astype(np.float64)
    elif shares == "by_loss":
        assert losses is not None
        means = owned.means_of(losses, owned.groups, len(sizes))[:-1]
        weights = np.sqrt(np.maximum(means, 0) * weights / owned.num_samples)
    return np.append(proportional(weights, int(known), sizes[:-1]), unknown)


def choose_by(
    owned: Owned,
    k: int,
    choice: str,
    *,
    scores: NDArray[np.float32] | None = None,
    counts: NDArray[np.int64] | None = None,
    temperature: float = 1.0,
    floor: float = 0.0,
) -> Chosen:
    """The k samples that a way to choose keeps.

    Args:
        owned: this rank's samples.
        k: of all samples.
        choice: ``highest`` or ``lowest`` scores; ``sampled``, a draw without replacement in proportion to
            score^(1 / temperature); ``even``, in turns in proportion to the scores (:func:`choose_evenly`).
        scores: (n,) float32, NaN where never measured; the running scores where it is ``None``.
        counts: as :func:`class_counts` gives them; without them classes do not matter.
        temperature: of ``sampled``.
        floor: of ``sampled`` and ``even``: this share of the mean score is added to every score.
    """
    scores = owned.scores if scores is None else scores
    if choice == "even":
        return choose_evenly(owned, k, sizes_of(owned, scores, floor), counts=counts)
    if choice == "sampled" and floor:
        scores = scores + floor * owned.mean(scores)
    selections: dict[str, Selection] = {"highest": HighestScores(), "lowest": LowestScores()}
    selection = selections.get(choice) or SampledScores(temperature=temperature, seed=owned.seed)
    return Chosen(owned.select(selection, k, scores=scores, counts=counts))


def choose_uniformly(owned: Owned, k: int, *, counts: NDArray[np.int64] | None = None) -> Chosen:
    """A fresh uniform sample of k, or of so many of every class."""
    return Chosen(owned.select(UniformSample(seed=owned.seed), k, counts=counts))


def choose_weighted(
    owned: Owned, k: int, sizes: NDArray[np.float64], *, counts: NDArray[np.int64] | None = None
) -> Chosen:
    """A draw of exactly k with known probabilities π in proportion to sizes (Pareto sampling: Rosén, 1997)."""
    probabilities = _probabilities(owned, k, sizes, counts)
    keys = pareto_keys(probabilities, owned.uniform())
    return Chosen(_highest(owned, k, keys, counts), probabilities.astype(np.float32))


def choose_evenly(
    owned: Owned, k: int, sizes: NDArray[np.float64], *, counts: NDArray[np.int64] | None = None
) -> Chosen:
    """The k richest, where each sample earns π_i of credit in every epoch and each that is kept pays 1.

    To its credit comes a phase in [0, 1), drawn anew at every visit, without which samples of like π would come
    together, and those of the largest all at once. So every sample is visited in proportion to its π, within two
    visits; with all π alike it is a shuffled pass over all data, cut into epochs. Needs the columns of
    :class:`WithCredit`.

    Args:
        owned: this rank's samples.
        k: of all samples.
        sizes: (n,) finite and above zero; π is in proportion to them, none above 1.
        counts: as :func:`class_counts` gives them.
    """
    probabilities = _probabilities(owned, k, sizes, counts)
    begins = np.isnan(owned.columns["credit"])
    credit = np.where(begins, 0, owned.columns["credit"]) + probabilities
    phase = np.where(begins, _SPREAD * owned.uniform(), owned.columns["phase"])
    keep = _highest(owned, k, credit + phase, counts)
    phase = np.where(keep, _SPREAD * owned.uniform(later=1), phase)
    columns = {"credit": (credit - keep).astype(np.float32), "phase": phase.astype(np.float32)}
    return Chosen(keep, probabilities.astype(np.float32), columns)


def known_deviations(owned: Owned) -> NDArray[np.float32]:
    """(n,) the scores that deviations make; of samples that were measured once, the mean of all others.

    A zero would rank them behind all others, and those that are drawn once would be drawn for ever.
    """
    once = measured_once(owned.columns)
    return np.where(once, np.float32(owned.mean(np.where(once, np.nan, owned.scores))), owned.scores)


def clipped(owned: Owned, *, at_chance: bool, at_quantile: float | None) -> NDArray[np.float32]:
    """(n,) the running scores, none above what is asked for.

    Args:
        owned: with labels, for ``at_chance``.
        at_chance: ln C, the cross-entropy of a guess among C classes.
        at_quantile: of all samples.
    """
    scores = known_deviations(owned) if "variance" in owned.columns else owned.scores
    if at_chance and len(owned.class_sizes) > 2:
        scores = np.minimum(scores, np.float32(np.log(len(owned.class_sizes) - 1)))
    if at_quantile is not None:
        (highest,) = owned.quantiles(scores, [at_quantile])
        scores = np.minimum(scores, np.float32(highest))
    return scores


def inverse_probabilities(owned: Owned, chosen: Chosen) -> NDArray[np.float32]:
    """(kept,) float32 weights 1 / π of the kept, divided by their mean over all ranks."""
    assert chosen.inclusion is not None
    weights = 1 / chosen.inclusion[chosen.keep].astype(np.float64)
    return (weights / owned.mean(weights)).astype(np.float32)


def sizes_of(owned: Owned, scores: NDArray[np.float32], floor: float) -> NDArray[np.float64]:
    """(n,) scores as sizes above zero: at least zero, the largest where never measured, and a share of their mean."""
    sizes = np.maximum(scores.astype(np.float64), 0)
    sizes[np.isnan(sizes)] = max(0.0, owned.largest(sizes))
    mean = owned.mean(sizes)
    return sizes + max(floor, _LEAST) * mean if mean else np.ones(len(sizes))


def _probabilities(
    owned: Owned, k: int, sizes: NDArray[np.float64], counts: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    groups = None if counts is None else owned.groups
    return inclusion_probabilities(sizes, np.array([k]) if counts is None else counts, owned, groups=groups)


def _highest(owned: Owned, k: int, keys: NDArray[np.floating], counts: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    return owned.top_k(keys, k) if counts is None else owned.top_k_by_class(keys, counts)
