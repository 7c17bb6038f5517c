"""What a run must be for its training set to be pruned; checked before its first batch."""

from typing import Any, Protocol

from composer.algorithms import SelectiveBackprop, SeqLengthWarmup
from composer.core import Algorithm, State, TimeUnit
from composer.utils import dist
from torch.utils.data import DataLoader

from ted_stream.pruning import KeepRatioSchedule
from ted_stream.reading import Prunable
from ted_stream.reading.sampler import PrunedSampler
from ted_stream.skip_list import DatasetLayout, SkipList

__all__ = ["PrunableData", "prunable_data", "refuse_shared_evaluation", "refuse_too_few_samples", "refuse_wrong_use"]


class PrunableData(Protocol):
    """What decides which samples an epoch has: a Prunable dataset, or the PrunedSampler of a map-style one."""

    fixed_skip_list: SkipList | None

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

    def activate(self, skip_list: SkipList | None, *, sample_ids: bool) -> None:
        """Make a skip-list the active one from the next epoch on; every rank calls it with the same list.

        Args:
            skip_list: drops its pruned samples; ``None`` drops nothing.
            sample_ids: whether an algorithm needs the ids of the samples.
        """
        ...


def refuse_wrong_use(state: State, algorithm: Algorithm, pruning_class: type[Algorithm]) -> None:
    """Refuse runs that this pruning algorithm cannot plan or measure.

    Raises:
        ValueError: for a duration other than epochs, or another algorithm that it cannot run beside.
    """
    if state.max_duration is None or state.max_duration.unit != TimeUnit.EPOCH:
        raise ValueError(
            f"max_duration is {state.max_duration}, but pruning plans in epochs: each has its keep ratio. "
            "Pass max_duration in epochs, for example '90ep'."
        )
    for other in state.algorithms:
        if isinstance(other, (SelectiveBackprop, SeqLengthWarmup)):
            raise ValueError(
                f"{type(other).__name__} cannot run beside {type(algorithm).__name__}: it changes the batch after "
                "its sample ids were read, so scores would go to the wrong samples. Remove one of the two."
            )
        if isinstance(other, pruning_class) and other is not algorithm:
            raise ValueError(
                f"{type(algorithm).__name__} and {type(other).__name__} would both prune the training set; "
                "pass one pruning algorithm to the Trainer."
            )


def prunable_data(dataloader: Any) -> PrunableData:
    """What decides on the samples of the training dataloader, if it can leave some out and lose no others.

    Raises:
        ValueError: if there is no such thing; the message says what to change.
    """
    dataset, sampler = getattr(dataloader, "dataset", None), getattr(dataloader, "sampler", None)
    data: PrunableData
    if isinstance(dataloader, DataLoader) and isinstance(dataset, Prunable):
        _refuse_lossy_streaming(dataloader, dataset)
        data = dataset
    elif isinstance(dataloader, DataLoader) and isinstance(sampler, PrunedSampler):
        _refuse_lossy_sampling(dataloader, sampler)
        data = sampler
    else:
        raise ValueError(
            f"The training data is a {type(dataloader).__name__} over a {type(dataset).__name__}, which cannot be "
            "pruned. Pass a torch DataLoader over a PrunedStreamingDataset, or make your own StreamingDataset "
            "prunable: class Mine(Prunable, YourDataset): pass. For a map-style dataset, pass the DataLoader "
            "sampler=PrunedSampler(dataset) (and neither shuffle nor batch_sampler)."
        )
    if data.fixed_skip_list is not None:
        raise ValueError(
            "The training data has a fixed skip_list, which pruning while training would replace at every epoch. "
            f"Drop skip_list= from the {type(data).__name__}, or drop the pruning algorithm."
        )
    return data


def _refuse_lossy_streaming(dataloader: DataLoader, dataset: Prunable) -> None:
    if dataset.batching_method != "random":
        raise ValueError(
            f"The training dataset has batching_method={dataset.batching_method!r}, but only 'random' batching "
            "can be pruned: the others drop kept samples that do not fill a batch of one stream."
        )
    if dataset.num_canonical_nodes is None and dataset.shuffle_algo in ("py1s", "py2s"):
        raise ValueError(
            f"The training dataset has shuffle_algo={dataset.shuffle_algo!r} and no num_canonical_nodes, which "
            "streaming then sets to 64 per node: every pruned epoch would be padded with up to 64 repeats per "
            "node, and the sample order would hang on the number of nodes. Pass num_canonical_nodes, for example "
            "the number of physical nodes."
        )
    if dataloader.batch_size != dataset.batch_size:
        raise ValueError(
            f"The DataLoader's batch_size is {dataloader.batch_size}, the dataset's is {dataset.batch_size}. "
            "Streaming plans whole batches per worker, so samples would be lost at the end of shrunken epochs; "
            "pass the same batch_size to both."
        )


def _refuse_lossy_sampling(dataloader: DataLoader, sampler: PrunedSampler) -> None:
    if dataloader.batch_size is None:
        raise ValueError(
            "The DataLoader has batch_size=None, so the dataset makes batches, and which samples they hold is not "
            "known. Pass the DataLoader a batch_size, and let the dataset give single samples."
        )
    if not dataloader.in_order:
        raise ValueError(
            "The DataLoader has in_order=False, so its batches come in another order than that of the PrunedSampler, "
            "and scores would go to the wrong samples. Drop in_order=False."
        )
    length = len(dataloader.dataset)  # pyright: ignore[reportArgumentType]
    if length != sampler.layout.num_samples:
        raise ValueError(
            f"The PrunedSampler was made for {sampler.layout.num_samples} samples, the DataLoader's dataset has "
            f"{length}. Pass both the same dataset, and make the sampler once the dataset has its final length."
        )
    ranks = sampler.rank, sampler.num_replicas
    here = dist.get_global_rank(), dist.get_world_size()
    if ranks != here:
        raise ValueError(
            f"The PrunedSampler is that of rank {ranks[0]} of {ranks[1]}, but this is rank {here[0]} of {here[1]}: "
            "samples would be trained on twice or not at all. Leave out rank= and num_replicas=, and start the "
            "script with Composer's launcher."
        )


def refuse_shared_evaluation(state: State, data: PrunableData) -> None:
    """Refuse to evaluate on what is pruned. (Evaluating on a map-style dataset without its sampler is no problem.)

    Raises:
        ValueError: if an evaluator reads the training dataset, or shares its sampler.
    """
    for evaluator in state.evaluators:
        dataloader = evaluator.dataloader.dataloader
        if getattr(dataloader, "dataset", None) is data:
            raise ValueError(
                f"The evaluator {evaluator.label!r} reads the training dataset, so it would see pruned epochs and "
                "batches with sample ids. Give it a dataset of its own."
            )
        if getattr(dataloader, "sampler", None) is data:
            raise ValueError(
                f"The evaluator {evaluator.label!r} shares the training data's PrunedSampler, so it would see pruned "
                "epochs. Give it a sampler of its own."
            )


def refuse_too_few_samples(
    schedule: KeepRatioSchedule, num_epochs: int, data: PrunableData, dataloader: DataLoader
) -> None:
    """Refuse a schedule whose smallest epoch cannot be spread over the canonical nodes, or over ranks and batches.

    Raises:
        ValueError: naming the epoch.
    """
    smallest = min(range(num_epochs), key=lambda epoch: schedule.keep_ratio(epoch, num_epochs))
    kept = schedule.num_kept(smallest, num_epochs, data.full_epoch_size)
    if isinstance(data, Prunable) and kept < data.canonical_nodes:
        raise ValueError(
            f"Epoch {smallest} is to keep {kept} samples, fewer than num_canonical_nodes = {data.canonical_nodes}, "
            "so they cannot be spread over the nodes. Prune less, or pass the dataset a smaller num_canonical_nodes."
        )
    if isinstance(data, PrunedSampler):
        full_batches = dataloader.batch_size - 1 if dataloader.drop_last else 0  # pyright: ignore
        fewest = full_batches * data.num_replicas + data.fewest_samples
        if kept < fewest:
            raise ValueError(
                f"Epoch {smallest} is to keep {kept} samples, but it takes {fewest} to give each of "
                f"{data.num_replicas} ranks a batch with drop_last={data.drop_last} for the sampler and "
                f"drop_last={dataloader.drop_last} for the DataLoader. Prune less, or pass drop_last=False."
            )
