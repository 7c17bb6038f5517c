"""The mathematics of dynamic pruning: keep ratios, importance, running scores, selection. Knows numpy and torch."""

from ted_stream.pruning.batches import batch_size, loss_shares, per_sample_cross_entropy, targets_of
from ted_stream.pruning.communicator import (
    Communicator,
    SingleProcess,
    TorchDistributed,
)
from ted_stream.pruning.owned import Owned
from ted_stream.pruning.running import ExponentialMean, Running
from ted_stream.pruning.schedules import (
    SCHEDULES,
    ConstantSchedule,
    CosineSchedule,
    KeepRatioSchedule,
    LinearSchedule,
    RollerCoasterSchedule,
    make_schedule,
    num_kept,
)
from ted_stream.pruning.score_store import Measurements, ScoreStore, ScoreUpdate
from ted_stream.pruning.selection import (
    HighestScores,
    LowestScores,
    SampledScores,
    Selection,
    UniformSample,
    select,
    top_k_mask,
)

__all__ = [
    "SCHEDULES",
    "Communicator",
    "ConstantSchedule",
    "CosineSchedule",
    "ExponentialMean",
    "HighestScores",
    "KeepRatioSchedule",
    "LinearSchedule",
    "LowestScores",
    "Measurements",
    "Owned",
    "RollerCoasterSchedule",
    "Running",
    "SampledScores",
    "ScoreStore",
    "ScoreUpdate",
    "Selection",
    "SingleProcess",
    "TorchDistributed",
    "UniformSample",
    "batch_size",
    "loss_shares",
    "make_schedule",
    "num_kept",
    "per_sample_cross_entropy",
    "select",
    "targets_of",
    "top_k_mask",
]
