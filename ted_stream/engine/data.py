"""What the engine prunes: anything that decides which samples an epoch has."""

from collections.abc import Callable
from typing import Any, Protocol

from torch.utils.data import DataLoader

from ted_stream.engine.plan import RunPlan
from ted_stream.engine.ranks import Ranks
from ted_stream.pruning import num_kept
from ted_stream.sampler import PrunedSampler
from ted_stream.skip_list import DatasetLayout, SkipList

__all__ = ["PrunableData", "deciding_data", "full_epoch_forwards", "prunable_data", "start_streaming_at"]


class PrunableData(Protocol):
    """What decides which samples an epoch has: a Prunable dataset, or the PrunedSampler of a map-style one."""

    fixed_skip_list: SkipList | None

    @property
    def seed_samples(self) -> bool:
        """Whether samples are read under random states of their own."""
        ...

    @property
    def layout(self) -> DatasetLayout:
        """What its skip-lists belong to."""
        ...

    @property
    def full_epoch_size(self) -> int:
        """Samples of an epoch over all ranks when nothing is pruned."""
        ...

    @property
    def replication(self) -> int | None:
        """How many ranks in a row get the same samples, if any do."""
        ...

    def activate(
        self, skip_list: SkipList | None, *, sample_ids: bool, file: Callable[[], bytes] | None = None
    ) -> None:
        """Make a skip-list the active one from the next epoch on; every rank calls it with the same list.

        Args:
            skip_list: drops its pruned samples; ``None`` drops nothing.
            sample_ids: whether an algorithm needs the ids of the samples.
            file: tells the bytes of the list's file, where they are made for others too.
        """
        ...

    def check_loader(self, loader: DataLoader, *, rank: int, world_size: int) -> None:
        """Refuse a loader that would lose kept samples, or give them other ids.

        Raises:
            ValueError: saying what to change.
        """
        ...

    def samples_of_rank(self, kept: int) -> int:
        """How many samples every rank yields of an epoch that keeps so many, repeats included."""
        ...

    def fewest_for(self, loader: DataLoader) -> tuple[int, str]:
        """The fewest samples that an epoch can have through this loader, and what to say of fewer."""
        ...


def deciding_data(loader: Any) -> PrunableData:
    """What decides on the samples of a training dataloader, perhaps by a fixed skip-list.

    Raises:
        ValueError: if there is no such thing; the message says what to change.
    """
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    if isinstance(loader, DataLoader) and callable(getattr(dataset, "activate", None)):
        return dataset  # pyright: ignore[reportReturnType]
    if isinstance(loader, DataLoader) and isinstance(sampler, PrunedSampler):
        return sampler
    raise ValueError(
        f"The training data is a {type(loader).__name__} over a {type(dataset).__name__}, which cannot be "
        "pruned. Pass a torch DataLoader over a PrunedStreamingDataset, or make your own StreamingDataset "
        "prunable: class Mine(Prunable, YourDataset): pass. For a map-style dataset, pass the DataLoader "
        "sampler=PrunedSampler(dataset) (and neither shuffle nor batch_sampler)."
    )


def prunable_data(loader: Any) -> PrunableData:
    """What decides on the samples of a training dataloader, and is free to be pruned.

    Raises:
        ValueError: if there is no such thing, or it has a fixed skip-list; the message says what to change.
    """
    data = deciding_data(loader)
    if data.fixed_skip_list is not None:
        raise ValueError(
            "The training data has a fixed skip_list, which pruning while training would replace at every epoch. "
            f"Drop skip_list= from the {type(data).__name__}, or drop the pruning algorithm."
        )
    return data


def start_streaming_at(dataset: Any, epoch: int, ranks: Ranks) -> None:
    """Let a streaming dataset's next iteration be the whole of an epoch; collective.

    It saves the epoch that ended, and would replay its order after a resume, and lag for ever.
    """
    if any(ranks.gather_objects(dataset.next_epoch != epoch)):
        # The ranks of a node share what is read here and written below, so none may write before all have read.
        state = ranks.on_every_rank(lambda: {**dataset.state_dict(0, True), "epoch": epoch})
        dataset.load_state_dict(state)
        if not epoch:
            dataset.next_epoch = 0  # a look at its samples has begun one


def full_epoch_forwards(data: PrunableData, loader: DataLoader, *, world_size: int) -> int:
    """How many samples an epoch forwards over all ranks when nothing is pruned.

    With what the ranks are padded by, and without what a loader leaves out for want of a whole batch.

    Args:
        data: that is pruned.
        loader: of a rank.
        world_size: ranks.
    """
    rows, size = data.samples_of_rank(data.full_epoch_size), loader.batch_size or 1
    if loader.drop_last:
        rows = rows // size * size
    return rows * world_size // (data.replication or 1)


def refuse_too_few_samples(plan: RunPlan, data: PrunableData, loader: DataLoader) -> None:
    """Refuse a run whose smallest epoch cannot be spread over the canonical nodes, or over ranks and batches.

    Raises:
        ValueError: naming the epoch.
    """
    smallest = plan.smallest_epoch
    if smallest is None:
        return
    epoch, ratio = smallest
    kept = num_kept(ratio, data.full_epoch_size)
    fewest, reason = data.fewest_for(loader)
    if kept < fewest:
        raise ValueError(f"Epoch {epoch} is to keep {kept} samples, but {reason}")
