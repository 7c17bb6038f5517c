"""How long a pruned run is, in the steps that the Trainer counts."""

from __future__ import annotations

from torch.utils.data import DataLoader

from ted_stream.engine import PruningEngine
from ted_stream.engine.plan import RunPlan
from ted_stream.trainers.reading import EpochReader
from ted_stream.trainers.schedules import steps_done

__all__ = ["Lengths", "StepsPerEpoch"]


class Lengths:
    """Counts optimizer steps and samples of a run.

    Args:
        engine: of the run.
        reader: knows where it is.
        loader: of the training set, as yet of full epochs.
        epochs: T.
        accumulation: batches to an optimizer step; an epoch's last ones make a step too.

    Attributes:
        in_epoch: whether an epoch has begun, whose length the loader has.
        steps_before: optimizer steps that have been made, in a checkpoint's run too.
    """

    def __init__(
        self,
        engine: PruningEngine,
        reader: EpochReader,
        loader: DataLoader,
        *,
        epochs: int,
        accumulation: int,
    ) -> None:
        self._engine, self._reader, self._loader = engine, reader, loader
        self.epochs = epochs
        self._accumulation = accumulation
        self._full_length = len(loader)
        self.in_epoch, self.steps_before = False, 0

    def _steps(self, batches: int) -> int:
        return -(-batches // self._accumulation)

    def _kept(self) -> list[int]:
        """Samples of every epoch: what those that have begun keep, and the others as planned."""
        begun = {record.epoch: record.kept for record in self._engine.records}
        num_samples = self._engine.store.num_samples
        plan = RunPlan(method=self._engine.method, num_samples=num_samples, epochs=self.epochs)
        return [begun.get(epoch, plan.kept(epoch)) or num_samples for epoch in range(self.epochs)]

    @property
    def full_steps(self) -> int:
        """Of the run without pruning."""
        return self.epochs * self._steps(self._full_length)

    @property
    def batches_left(self) -> int:
        """Of the epoch, or of a full one before the first."""
        return len(self._loader) - self._reader.done if self.in_epoch else self._full_length

    @property
    def coming_epoch(self) -> int:
        """With which the Trainer's loop begins."""
        return self._reader.epoch + self._reader.is_over

    @property
    def planned_steps(self) -> int:
        """Of the whole run; at most so many where the method decides in each epoch itself."""
        size, steps = self._loader.batch_size or 1, self.steps_before
        for epoch, kept in list(enumerate(self._kept()))[self.coming_epoch :]:
            batches = min(self._full_length, -(-self._engine.data.samples_of_rank(kept) // size))
            if epoch == self._reader.epoch:
                batches = (len(self._loader) if self.in_epoch else batches) - self._reader.done
            steps += self._steps(batches)
        return steps

    @property
    def planned_samples(self) -> int:
        """That the whole run forwards, on all ranks; at most so many."""
        world_size, data = self._engine.ranks.world_size, self._engine.data
        return sum(data.samples_of_rank(kept) * world_size for kept in self._kept())

    def position(self) -> float:
        """How far the run has come, in steps of the one without pruning."""
        at, lengths = (self._reader.epoch, self._reader.done), (len(self._loader), self._full_length)
        return steps_done(self._engine, at, lengths, accumulation=self._accumulation)


class StepsPerEpoch(int):
    """Steps of a full epoch, by which the Trainer divides the steps made so far to learn where a run goes on.

    Pruned epochs have fewer, so it is told the epoch instead, and to skip no batches: the loader leaves them out.
    """

    epoch = 0

    def going_on_at(self, epoch: int) -> StepsPerEpoch:
        """These steps, with the epoch that the division is to tell."""
        self.epoch = epoch
        return self

    def __rfloordiv__(self, steps: int) -> int:
        return self.epoch

    def __rmod__(self, steps: int) -> int:
        return 0
