"""The mathematics of dynamic pruning: keep ratios, importance, running scores, selection. Knows numpy and torch."""

from ted_stream.pruning.batches import batch_size, loss_shares, per_sample_cross_entropy, targets_of
from ted_stream.pruning.communicator import (
    Communicator,
    SingleProcess,
    TorchDistributed,
    default_communicator,
)
from ted_stream.pruning.importance import SITES, Importance, LossImportance, MaskGradient, find_output_layer
from ted_stream.pruning.schedules import (
    SCHEDULES,
    ConstantSchedule,
    CosineSchedule,
    KeepRatioSchedule,
    LinearSchedule,
    RollerCoasterSchedule,
    make_schedule,
)
from ted_stream.pruning.scores import Measurements, ScoreStore, ScoreUpdate
from ted_stream.pruning.selection import HighestScores, SampledScores, Selection, UniformSample, select, top_k_mask

__all__ = [
    "SCHEDULES",
    "SITES",
    "Communicator",
    "ConstantSchedule",
    "CosineSchedule",
    "HighestScores",
    "Importance",
    "KeepRatioSchedule",
    "LinearSchedule",
    "LossImportance",
    "MaskGradient",
    "Measurements",
    "RollerCoasterSchedule",
    "SampledScores",
    "ScoreStore",
    "ScoreUpdate",
    "Selection",
    "SingleProcess",
    "TorchDistributed",
    "UniformSample",
    "batch_size",
    "default_communicator",
    "find_output_layer",
    "loss_shares",
    "make_schedule",
    "per_sample_cross_entropy",
    "select",
    "targets_of",
    "top_k_mask",
]
