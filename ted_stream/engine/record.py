"""What a run kept and forwarded, epoch by epoch."""

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["SCORE_QUANTILES", "EpochRecord", "forwarded_in"]

SCORE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the running scores, that are kept of every epoch."""


@dataclass(kw_only=True)
class EpochRecord:
    """What one epoch kept and forwarded, over all ranks; a row of ``run.json``.

    Args:
        epoch: 0-based.
        keep_ratio: r_t; what was kept of all samples, where the method decides on a count of its own.
        kept: samples of the dataset that the skip-list keeps.
        kept_size: the sum of their sizes, where learning rates come on by these; else ``None``.
        returning: kept samples that the epoch before had pruned. Near zero over many epochs, the method is frozen.
        expected_returning: how many these would be on average of a uniform draw: kept · pruned in the epoch before / N.
        unmeasured: samples without a score when the epoch was selected.
        scores_alike: whether all samples had the same score when the epoch was selected.
        score_quantiles: by probability q (of `SCORE_QUANTILES`, as text), the ⌈q·m⌉-th smallest of the m scores when
            the epoch was selected; empty without scores.
        skip_list: file name in the run folder.
        digest: of the skip-list.
        loss_factor: what every sample's loss is multiplied by; weights of single samples are in the skip-list.
        forwarded: samples that were trained on, padding repeats included; ranks that replicate each other count once.
        non_finite: measurements of them that were dropped because they were infinite or NaN.
        scarce_classes: of which less than a tenth of their share in the run's first epoch was trained on; none where
            targets are no classes, or the method measures nothing.
        warnings: kinds of :class:`SelectionWarning` that were said of it: ``diverged``, ``non_finite``, ``alike``,
            ``frozen``, ``class``.
        boundary_seconds: time to score, select, write and activate, on rank 0.
    """

    epoch: int
    keep_ratio: float
    kept: int
    returning: int
    unmeasured: int
    skip_list: str
    digest: str
    loss_factor: float = 1.0
    expected_returning: float = 0.0
    scores_alike: bool = False
    score_quantiles: dict[str, float] = field(default_factory=dict)
    kept_size: int | None = None
    forwarded: int = 0
    non_finite: int = 0
    scarce_classes: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    boundary_seconds: float = 0.0


def forwarded_in(records: Iterable[EpochRecord]) -> dict[int, int]:
    """Samples by epoch, of the epochs that have ended."""
    return {record.epoch: record.forwarded for record in records if record.forwarded}
