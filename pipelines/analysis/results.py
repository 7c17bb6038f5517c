"""The numbers of an analysis, row by row: losses in nats, correlations in [-1, 1].

``None`` stands where there is no such number: a mean over no samples, or what is not finite.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["QUANTILES", "GradientRow", "LossRow", "Point", "RunAnalysis", "Spread"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """Mean losses after so many epochs (TED, Fig. 2).

    Attributes:
        after: epochs that were over; 0 is the network as it was initialised.
        kept: samples that the epoch which was just over kept; at 0 what the first epoch will.
        loss: over all samples.
        kept_loss: over these.
        pruned_loss: over the others.
        least_kept_loss: over those that all epochs together kept least often, as many as the smallest epoch prunes.
        most_kept_loss: over the others.
    """

    after: int
    kept: int
    loss: float | None
    kept_loss: float | None
    pruned_loss: float | None
    least_kept_loss: float | None
    most_kept_loss: float | None


@dataclass(frozen=True, kw_only=True)
class GradientRow:
    """The gradient of the mean loss over what an epoch keeps, beside that over all data (TED, Fig. 4).

    Attributes:
        after: epochs that were over; the weights are those at which the next epoch, whose list this is, began.
        kept: samples that it kept.
        pearson: correlation of the two gradients' entries.
        cosine: of the two gradients.
        norm_ratio: of the kept data's gradient to that of all data.
        weighted_pearson: as ``pearson``, the kept samples weighing what the list says; only where it weighs them.
        weighted_cosine: as ``cosine``, likewise.
        random_pearson: as ``pearson``, of a uniform sample of as many instead of the kept.
        random_cosine: as ``cosine``, likewise.
    """

    after: int
    kept: int
    pearson: float | None
    cosine: float | None
    norm_ratio: float | None
    weighted_pearson: float | None
    weighted_cosine: float | None
    random_pearson: float | None
    random_cosine: float | None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How losses are spread over some samples at the end (TED, Fig. 1).

    Attributes:
        samples: how many.
        mean_times_kept: epochs that kept one of them, on average.
        mean: of their losses.
        quantiles: of their losses, at `QUANTILES`.
    """

    samples: int
    mean_times_kept: float
    mean: float | None
    quantiles: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The network at (1 − α)·θ_1 + α·θ_T (TED, Fig. 8).

    Attributes:
        alpha: α.
        loss: mean over the training split.
        least_kept_loss: as in `LossRow`.
        test: test metrics, by name.
    """

    alpha: float
    loss: float | None
    least_kept_loss: float | None
    test: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class RunAnalysis:
    """All that was computed of a run.

    Attributes:
        name: that tells it from the others.
        folder: of the run.
        method: of its settings.
        dataset: fingerprint of the training split.
        samples: N.
        epochs: T.
        least_kept: losses at the last checkpoint of the samples that were kept least often, and of the others.
        most_kept: of the others.
        losses: by epochs.
        gradients: by epochs, where the next one left samples out or weighed them.
        interpolation: by α.
        interpolated: epochs after which θ_1 and θ_T were taken.
        notes: what was not computed, and why.
    """

    name: str
    folder: str
    method: str
    dataset: str
    samples: int
    epochs: int
    least_kept: Spread | None = None
    most_kept: Spread | None = None
    losses: tuple[LossRow, ...] = field(default=(), repr=False)
    gradients: tuple[GradientRow, ...] = field(default=(), repr=False)
    interpolation: tuple[Point, ...] = field(default=(), repr=False)
    interpolated: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
