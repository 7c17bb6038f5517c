"""What a run kept and forwarded, epoch by epoch."""

from dataclasses import dataclass

__all__ = ["EpochRecord"]


@dataclass(kw_only=True)
class EpochRecord:
    """What one epoch kept and forwarded, over all ranks; a row of ``run.json``.

    Args:
        epoch: 0-based.
        keep_ratio: r_t; what was kept of all samples, where the method decides on a count of its own.
        kept: samples of the dataset that the skip-list keeps.
        returning: kept samples that the epoch before had pruned. Near zero over many epochs, the method is frozen.
        unmeasured: samples without a score when the epoch was selected.
        skip_list: file name in the run folder.
        digest: of the skip-list.
        loss_factor: what every sample's loss is multiplied by; weights of single samples are in the skip-list.
        forwarded: samples that were trained on, padding repeats included; ranks that replicate each other count once.
        non_finite: measurements that were dropped because they overflowed.
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
    forwarded: int = 0
    non_finite: int = 0
    boundary_seconds: float = 0.0
