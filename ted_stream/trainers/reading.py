"""A loader's batches, from where a run is in an epoch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ted_stream.engine import PrunableData, Ranks, prunable_data, read_ids
from ted_stream.engine.batch_ids import Taken
from ted_stream.engine.data import start_streaming_at
from ted_stream.engine.generators import get_generators, set_generators
from ted_stream.trainers import requirements

__all__ = ["EpochReader", "checked_data"]


def checked_data(loader: DataLoader, ranks: Ranks) -> PrunableData:
    """What decides on the samples of a training loader; collective.

    Raises:
        ValueError: if it cannot be pruned, or would lose kept samples.
    """
    data = ranks.on_every_rank(lambda: prunable_data(loader))
    ranks.on_every_rank(lambda: data.check_loader(loader, rank=ranks.rank, world_size=ranks.world_size))
    return data


class EpochReader:
    """Reads the epochs of a loader, one from its middle where a run goes on.

    Args:
        loader: of the training set.
        data: what is pruned of it.
        ranks: that share it.

    Attributes:
        epoch: that is read, or comes next.
        done: how many of its batches have been trained on.
        is_over: whether those are all, though the epoch has not ended: saved within its last batch.
    """

    def __init__(self, loader: DataLoader, data: PrunableData, ranks: Ranks) -> None:
        self._loader, self._ranks = loader, ranks
        self._dataset: Any = data
        self._ids = read_ids(loader, ranks)
        self._loaded: dict[str, Any] | None = None
        self._iterator_is_late = False
        self.epoch, self.done, self.is_over = 0, 0, False

    def begin(self) -> None:
        """Let a streaming dataset begin where the run does."""
        if not hasattr(self._dataset, "next_epoch"):
            return
        if self._loaded is None or self.is_over or not self.done:
            start_streaming_at(self._dataset, self.epoch + self.is_over, self._ranks)
        else:
            self._dataset.load_state_dict(self._loaded["dataset"])
            self._dataset.next_epoch = self.epoch  # not beyond, where a look at its samples has begun one

    def read(self) -> Iterator[Taken]:
        """What is left of the epoch: batches as the model expects them, their ids, (B,) int64, how these share rows.

        The random generators are where they were when the state was saved: from the first batch on, or, where that was
        the epoch's last, from its end on.
        """
        generators = self._loaded["generators"] if self._loaded else None
        self._loaded = None
        if self.is_over:
            set_generators(generators or [], self._ranks)
            self._iterator_is_late = self._loader.persistent_workers
            return
        sampler: Any = self._loader.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch)
        self._ids.start_epoch(self.done)
        if generators and not self.done and not self._loader.persistent_workers:
            set_generators(generators, self._ranks)  # an epoch's workers are seeded by what comes next
            generators = None
        if self._iterator_is_late:
            # Workers that live on draw their seed once, in the run that was cut off; those of this run draw it next.
            generators, self._iterator_is_late = get_generators(self._ranks), False
        iterator = iter(self._loader)
        if generators:
            set_generators(generators, self._ranks)
        for batch in iterator:
            self._ids.before_batch()
            yield self._ids.take(batch)

    def end_epoch(self) -> None:
        """Go on to the next."""
        self.epoch, self.done, self.is_over = self.epoch + 1, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; collective."""
        samples = self.done * (self._loader.batch_size or 0) * self._ranks.world_size
        streams = hasattr(self._dataset, "load_state_dict")
        return {
            "epoch": self.epoch,
            "done": self.done,
            "is_over": 0 < self.done == len(self._loader),
            "order": self._ids.order,
            "dataset": self._dataset.state_dict(samples // (self._dataset.replication or 1), True) if streams else {},
            "generators": get_generators(self._ranks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there.

        Raises:
            ValueError: if it is in the middle of an epoch whose samples would now come in another order.
        """
        if state["done"]:
            requirements.refuse_other_order(state, self._ids.order, state["epoch"])
        self._loaded = state
        self.epoch, self.done, self.is_over = state["epoch"], state["done"], state["is_over"]
