"""The drop-in StreamingDataset, with every argument by name."""

import os
import typing
from collections.abc import Callable, Sequence
from typing import Any

from streaming.base.constant import DEFAULT_TIMEOUT
from streaming.base.stream import Stream

from ted_stream.reading.dataset import Prunable
from ted_stream.skip_list import SkipList

__all__ = ["PrunedStreamingDataset"]


class PrunedStreamingDataset(Prunable):
    """A drop-in StreamingDataset whose samples can be pruned: by an algorithm while training, or by a fixed list.

    The arguments up to ``stream_config`` are StreamingDataset's; ``skip_list`` and ``sample_ids`` are those of
    :class:`Prunable`, ``seed_samples`` is that of :class:`~ted_stream.reading.sample_seeding.SampleSeeding`, and the
    others are those of :class:`~ted_stream.reading.shard_reading.ShardReading`.
    """

    def __init__(
        self,
        *,
        streams: typing.Sequence[Stream] | None = None,  # as streaming writes it, so that the signatures are equal
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        download_retry: int = 2,
        download_timeout: float = DEFAULT_TIMEOUT,
        validate_hash: str | None = None,
        keep_zip: bool = False,
        epoch_size: int | str | None = None,
        predownload: int | None = None,
        cache_limit: int | str | None = None,
        sampling_method: str = "balanced",
        sampling_granularity: int = 1,
        partition_algo: str = "relaxed",
        num_canonical_nodes: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        shuffle_algo: str = "py1e",
        shuffle_seed: int = 9176,
        shuffle_block_size: int | None = None,
        batching_method: str = "random",
        allow_unsafe_types: bool = False,
        replication: int | None = None,
        stream_name: str = "stream",
        stream_config: dict[str, Any] | None = None,
        skip_list: SkipList | str | os.PathLike[str] | None = None,
        sample_ids: bool = False,
        seed_samples: bool = False,
        request_latency: int | str = "64kb",
        min_gap: int | str = "64kb",
        decoders: Sequence[str | Callable[[str, bytes], Any]] = ("pil",),
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(**arguments)
