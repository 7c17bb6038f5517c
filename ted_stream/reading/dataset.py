"""A StreamingDataset that drops pruned samples before it plans an epoch, so that their bytes are never asked for."""

import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming.base.shared import SharedMemory
from streaming.base.world import World
from torch.utils.data import DataLoader

from ted_stream.files import write_bytes
from ted_stream.pruning.sample_ids import attach_sample_id
from ted_stream.reading.content import shard_contents
from ted_stream.reading.sample_seeding import SampleSeeding
from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout, from_bytes, to_bytes, unweighted

__all__ = ["Prunable", "samples_per_rank", "stream_layout"]


def samples_per_rank(num_samples: int, num_canonical_nodes: int, world: World) -> int:
    """How many samples streaming's partitioning hands every rank, the repeats that it pads with included.

    Every canonical node is padded to the same length, then every physical node to a multiple of its ranks
    (streaming/base/partition/orig.py).
    """
    per_canonical_node = -(-num_samples // num_canonical_nodes)
    if num_canonical_nodes < world.num_nodes:
        split = world.num_nodes // num_canonical_nodes
        per_canonical_node = -(-per_canonical_node // split) * split
    per_node = num_canonical_nodes * per_canonical_node // world.num_nodes
    return -(-per_node // world.ranks_per_node)


def stream_layout(shards: Iterable[Any], contents: Sequence[str]) -> StreamLayout:
    """The layout of a stream of streaming's shards, and what identifies the content of each."""
    parts = (
        ShardLayout(
            name=shard.file_pairs[0][0].basename,
            size=sum(raw.bytes for raw, _ in shard.file_pairs),
            samples=shard.samples,
            content=content,
        )
        for shard, content in zip(shards, contents, strict=True)
    )
    return StreamLayout(shards=tuple(parts))


def _signature(cls: type) -> inspect.Signature:
    """What a class takes: its own parameters, and behind ``*args, **kwargs`` those of the next class."""
    parameters: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        own = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                parameters.setdefault(parameter.name, parameter)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in own):
            break
    return inspect.Signature(sorted(parameters.values(), key=lambda parameter: parameter.kind))


class Prunable(SampleSeeding):
    """Makes a StreamingDataset prunable; put it before the dataset's own class.

    ``class Mine(Prunable, StreamingVisionDataset): pass`` takes all arguments of the class behind it. Without a
    skip-list it yields what that class yields, in the same order. With one, the pruned samples are dropped where an
    epoch is planned: before samples are partitioned over nodes, ranks and workers, so every rank gets equally many.

    Samples of several streams are pruned after the streams' proportions have chosen them: a stream that contributes
    30 % of an epoch contributes its share of kept samples among those, and a sample that is chosen twice is kept or
    dropped twice.

    ``len`` is the number of samples that this rank will yield, padding included. Stock's leaves the padding out.

    Args:
        skip_list: train on a fixed subset: a :class:`SkipList` without weights, or the path or URI of its file.
        sample_ids: yield every sample together with its id (see :func:`attach_sample_id`). An algorithm that needs
            the ids switches them on by itself.

    Raises:
        SkipListError: if the skip-list does not belong to this dataset.
        ValueError: if it has weights or leaves too few samples, the batching method cannot be pruned, or the streams'
            proportions draw other samples every epoch.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls)  # for those who pass a class what it says it takes

    def __init__(
        self,
        *args: Any,
        skip_list: SkipList | str | os.PathLike[str] | None = None,
        sample_ids: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._stock_epoch_size = self.epoch_size
        self._layout: DatasetLayout | None = None
        self._planned: SkipList | None = None  # what this process knows to be active, or planned an epoch with
        self._current_id = -1
        self.fixed_skip_list: SkipList | None = None
        if skip_list is not None:
            self.fixed_skip_list = unweighted(skip_list, reader=type(self).__name__).aligned_to(self.layout)
            if self._draws_anew:
                raise ValueError(
                    "The streams' proportions draw other samples every epoch, so a fixed skip_list leaves a different "
                    "number every epoch and len() cannot tell it. Pass sampling_method='fixed', or streams without "
                    "proportion, repeat, choose and epoch_size."
                )
        self.activate(self.fixed_skip_list, sample_ids=sample_ids)

    @property
    def layout(self) -> DatasetLayout:
        """The shards of every stream: names, sizes in bytes, sample counts, and what identifies their content."""
        if self._layout is None:
            contents = shard_contents(self, self._node_folder)
            of_streams = zip(self.shard_offset_per_stream, self.shards_per_stream, strict=True)
            parts = [slice(first, first + count) for first, count in of_streams]
            streams = tuple(stream_layout(self.shards[part], contents[part]) for part in parts)
            self._layout = DatasetLayout(streams=streams)
        return self._layout

    @property
    def full_epoch_size(self) -> int:
        """Samples of an epoch over all ranks when nothing is pruned, after the streams' proportions."""
        return self._stock_epoch_size

    @property
    def canonical_nodes(self) -> int:
        """num_canonical_nodes as streaming resolves it when the first epoch is planned."""
        nodes = self._parallel_rank_world.num_nodes
        return self.num_canonical_nodes or (64 * nodes if self.shuffle_algo in ("py1s", "py2s") else nodes)

    def samples_of_rank(self, kept: int) -> int:
        """How many samples every rank yields of an epoch that keeps so many, repeats included."""
        return samples_per_rank(kept, self.canonical_nodes, self._parallel_rank_world)

    def fewest_for(self, loader: DataLoader) -> tuple[int, str]:
        """The fewest samples that an epoch can have, and what to say of fewer."""
        del loader
        nodes = self.canonical_nodes
        reason = (
            f"fewer than num_canonical_nodes = {nodes}, so they cannot be spread over the nodes. Prune less, or pass "
            "the dataset a smaller num_canonical_nodes."
        )
        return nodes, reason

    def check_loader(self, loader: DataLoader, *, rank: int, world_size: int) -> None:
        """Refuse a loader through which kept samples would go unseen.

        Raises:
            ValueError: saying what to change.
        """
        del rank, world_size
        if self.batching_method != "random":
            raise ValueError(
                f"The training dataset has batching_method={self.batching_method!r}, but only 'random' batching "
                "can be pruned: the others drop kept samples that do not fill a batch of one stream."
            )
        if self.num_canonical_nodes is None and self.shuffle_algo in ("py1s", "py2s"):
            raise ValueError(
                f"The training dataset has shuffle_algo={self.shuffle_algo!r} and no num_canonical_nodes, which "
                "streaming then sets to 64 per node: every pruned epoch would be padded with up to 64 repeats per "
                "node, and the sample order would hang on the number of nodes. Pass num_canonical_nodes, for example "
                "the number of physical nodes."
            )
        if loader.batch_size != self.batch_size:
            raise ValueError(
                f"The DataLoader's batch_size is {loader.batch_size}, the dataset's is {self.batch_size}. "
                "Streaming plans whole batches per worker, so samples would be lost at the end of shrunken epochs; "
                "pass the same batch_size to both."
            )
        if loader.drop_last:
            raise ValueError(
                "The DataLoader has drop_last=True, so kept samples that do not fill a worker's last batch would go "
                "unseen in every epoch, and an epoch that keeps fewer than a batch would have none. Pass "
                "drop_last=False."
            )

    def activate(
        self, skip_list: SkipList | None, *, sample_ids: bool, file: Callable[[], bytes] | None = None
    ) -> None:
        """Make a skip-list the active one from the next epoch on, in this process and in every worker.

        Every rank calls it with the same list before it makes the epoch's iterator; with several ranks on a node a
        barrier must follow before any of them iterates.

        Args:
            skip_list: drops its pruned samples; ``None`` drops nothing. Weights are for whoever computes the loss.
            sample_ids: whether samples are yielded with their ids.
            file: tells the bytes of the list's file, where they are made for others too; a list that is changed
                here (its weights, the order of its streams) has others.

        Raises:
            SkipListError: if the list belongs to another dataset.
            ValueError: if too few samples remain, or the batching method cannot be pruned.
        """
        if skip_list is not None:
            given, skip_list = skip_list, skip_list.aligned_to(self.layout).without_weights()
            if file is None or skip_list is not given:
                file = partial(to_bytes, skip_list)
            if self.batching_method != "random":
                raise ValueError(
                    f"batching_method is {self.batching_method!r}, but only 'random' batching can be pruned: the "
                    "others drop the samples that do not fill a batch of one stream, so kept samples would go "
                    "unseen. Pass batching_method='random'."
                )
        self._set_length(skip_list)
        self._planned = skip_list
        if self._unique_rank_world.is_local_leader:
            self._publish(skip_list, sample_ids, file)

    def _set_length(self, skip_list: SkipList | None) -> None:
        """Make len() count what this rank will yield in the coming epoch."""
        if self.batching_method != "random":
            return  # never pruned; streaming's estimate stands
        canonical_nodes = self.canonical_nodes
        chosen = self._stock_epoch_size if skip_list is None else self._num_kept_of_chosen(skip_list)
        if skip_list is not None and chosen < canonical_nodes:
            raise ValueError(
                f"The skip-list leaves {chosen} samples per epoch, fewer than num_canonical_nodes = "
                f"{canonical_nodes}, so they cannot be spread over the nodes. Prune less, or pass a smaller "
                "num_canonical_nodes."
            )
        self.length = self.samples_of_rank(chosen)

    def _num_kept_of_chosen(self, skip_list: SkipList) -> int:
        if self._chooses_all:
            return skip_list.num_kept
        # Ask for the coming epoch's draw.
        epoch, _ = self._resume(self._parallel_rank_world, self.next_epoch)
        return int(skip_list.keep_mask()[super().resample_streams(epoch)[1]].sum())

    @property
    def _chooses_all(self) -> bool:
        """Whether an epoch holds every sample of every stream once."""
        return [stream.choose for stream in self.streams] == self.samples_per_stream.tolist()

    @property
    def _draws_anew(self) -> bool:
        return self.sampling_method == "balanced" and not self._chooses_all

    def _publish(self, skip_list: SkipList | None, sample_ids: bool, file: Callable[[], bytes] | None) -> None:
        name = None
        if skip_list is not None and file is not None:
            name = f"{skip_list.digest}.parquet"
            write_bytes(str(self._node_folder / name), file())
        active = {"skip_list": name, "sample_ids": sample_ids}
        write_bytes(str(self._node_folder / "active.json"), json.dumps(active).encode())
        for path in self._node_folder.glob("*.parquet"):
            if path.name != name:
                path.unlink()

    def _active(self) -> dict[str, Any]:
        return json.loads((self._node_folder / "active.json").read_bytes())

    def _active_skip_list(self) -> SkipList | None:
        name = self._active()["skip_list"]
        if name is None:
            self._planned = None
            return None
        digest = name.removesuffix(".parquet")
        if self._planned is None or self._planned.digest != digest:
            data = (self._node_folder / name).read_bytes()
            self._planned = from_bytes(data, source=name, layout=self.layout, digest=digest)
        return self._planned

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The epoch's samples after pruning: (shuffle unit sizes, int64; sample ids, int64, or int32 where they fit).

        Units keep their number and order, so that shards stay with their canonical nodes; a unit may be empty.
        """
        skip_list = self._active_skip_list()
        if skip_list is None:
            self.epoch_size = self._stock_epoch_size
            return super().resample_streams(epoch, stream_id)
        if stream_id is None and self._chooses_all:
            # The ids of what is pruned are never made, and the others are kept small: they live while an epoch is
            # shuffled, when planning takes the most memory.
            dtype = np.int32 if self.num_samples <= np.iinfo(np.int32).max else np.int64
            units, ids = skip_list.kept_per_shard, skip_list.kept_ids(dtype)
        else:
            units, ids = super().resample_streams(epoch, stream_id)
            kept = skip_list.keep_mask()[ids]
            kept_before = np.concatenate(([0], np.cumsum(kept)))
            stops = np.cumsum(units)
            units, ids = kept_before[stops] - kept_before[stops - units], ids[kept]
        self.epoch_size = len(ids)  # what random batching plans with
        return units, ids

    def _share_work(self, sample_ids: NDArray[np.integer]) -> tuple[SharedMemory, SharedMemory | None]:
        return super()._share_work(sample_ids.astype(np.int64, copy=False))

    def _each_sample_id(self, it: Any) -> Iterator[int]:
        for sample_id in super()._each_sample_id(it):
            self._current_id = int(sample_id)
            yield sample_id

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        # All of the node's workers have come here, and none is done before all have gone on.
        self._with_ids = self._active()["sample_ids"]
        return super()._get_work(epoch, sample_in_epoch)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over this worker's samples, with their ids where those are switched on."""
        for sample in super().__iter__():
            yield attach_sample_id(sample, self._current_id) if self._with_ids else sample
