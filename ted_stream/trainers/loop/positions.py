"""How far a loop has come, in optimizer steps of a full-data run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ted_stream.trainers.reading import EpochReader

if TYPE_CHECKING:
    from ted_stream.trainers.loop.pruner import Pruner

__all__ = ["steps_done"]


def steps_done(pruner: Pruner, reader: EpochReader, in_batch: bool, accumulation: int) -> float:
    """The steps of a full-data run that stand for those that were made, a fraction included.

    Args:
        pruner: of the run.
        reader: of its batches.
        in_batch: whether a batch has been trained on that the reader does not count yet.
        accumulation: batches to an optimizer step; the last ones of an epoch make a step too.
    """
    kept, plan, done = None, pruner.engine.plan, reader.done + in_batch
    if pruner.progress == "samples":
        kept = plan.forecast({record.epoch: record.kept for record in pruner.records})
    position = plan.positions(-(-pruner.full_length // accumulation), kept)
    return position(reader.epoch, -(-done // accumulation), -(-len(pruner.loader) // accumulation))
