"""The run of a pruning method, whatever trains: epochs, records, run folder, state, and what a step records."""

from ted_stream.engine.batch_ids import BatchIds, read_ids
from ted_stream.engine.data import PrunableData, deciding_data, full_epoch_forwards, prunable_data
from ted_stream.engine.engine import PruningEngine
from ted_stream.engine.guard import SelectionWarning
from ted_stream.engine.progress import Progress, ProgressLike, checked_progress
from ted_stream.engine.ranks import Ranks
from ted_stream.engine.record import EpochRecord
from ted_stream.engine.run_folder import RunFolder, checked_folder, filled_in
from ted_stream.engine.step import StepRecorder

__all__ = [
    "BatchIds",
    "EpochRecord",
    "Progress",
    "ProgressLike",
    "PrunableData",
    "PruningEngine",
    "Ranks",
    "RunFolder",
    "SelectionWarning",
    "StepRecorder",
    "checked_folder",
    "checked_progress",
    "deciding_data",
    "filled_in",
    "full_epoch_forwards",
    "prunable_data",
    "read_ids",
]
