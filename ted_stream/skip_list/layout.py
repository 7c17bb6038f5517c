"""What a skip-list must know of a dataset: its streams, their shards, and a fingerprint of both."""

import hashlib
import json
import operator
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ted_stream.skip_list.errors import SkipListError
from ted_stream.skip_list.text import check_text

_STREAM_TAG = "ted_stream.stream.1"
_CONTENT_TAG = "ted_stream.stream.2"  # where the content of a shard is known
_DATASET_TAG = "ted_stream.dataset.1"
_KEY_LENGTH = 16


def _hash(*parts: object) -> str:
    """Hex sha256 of ``parts`` as JSON, whose quotes and brackets leave no two inputs alike."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """One shard file.

    Attributes:
        name: File name as in the dataset's index, with its relative path.
        size: Bytes of the raw (uncompressed) shard, in [0, 2**63).
        samples: Number of samples, in [1, 2**32).
        content: What identifies the bytes: the kind of digest, a colon, the digest, as in "sha1:…"; empty where
            unknown. Digests of different kinds cannot be compared.

    Raises:
        SkipListError: A value is out of its range or form, or the name is empty.
    """

    name: str
    size: int
    samples: int
    content: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", operator.index(self.size))
        object.__setattr__(self, "samples", operator.index(self.samples))
        if not self.name:
            raise SkipListError("a shard has an empty name; give the file name of the dataset's index")
        check_text("shard name", self.name)
        if not 0 <= self.size < 2**63:
            raise SkipListError(f"shard {self.name!r} has size {self.size}, outside [0, 2**63) bytes")
        if not 1 <= self.samples < 2**32:
            raise SkipListError(
                f"shard {self.name!r} has {self.samples} samples, outside [1, 2**32), the positions that a "
                "skip-list can name; leave an empty shard out, split a larger one"
            )
        kind, _, digest = self.content.partition(":")
        if self.content and not (kind and digest):
            raise SkipListError(
                f"shard {self.name!r} has content {self.content!r}; give a digest after its kind, as 'sha1:…', or ''"
            )
        check_text("content", self.content)

    def may_be(self, other: "ShardLayout") -> bool:
        """Whether nothing that is known of both tells them apart."""
        if (self.name, self.size, self.samples) != (other.name, other.size, other.samples):
            return False
        return self.content == other.content or not self.is_comparable(other)

    def is_comparable(self, other: "ShardLayout") -> bool:
        """Whether both have a content of the same kind."""
        kinds = {shard.content.partition(":")[0] for shard in (self, other)}
        return len(kinds) == 1 and "" not in kinds


@dataclass(frozen=True, kw_only=True)
class StreamLayout:
    """One stream: its shards, in the order of its index.

    Raises:
        SkipListError: There is no shard, or two shards share a name.
    """

    shards: tuple[ShardLayout, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(self.shards))
        if not self.shards:
            raise SkipListError("a stream has no shards; leave it out or check its index")
        name, count = Counter(shard.name for shard in self.shards).most_common(1)[0]
        if count > 1:
            raise SkipListError(f"shard {name!r} occurs {count} times in one stream; names must be unique there")

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over every shard's name, size, sample count and, where any is known, content, in order."""
        if not any(shard.content for shard in self.shards):
            return self.shape
        return _hash(_CONTENT_TAG, [(shard.name, shard.size, shard.samples, shard.content) for shard in self.shards])

    @cached_property
    def shape(self) -> str:
        """Hex sha256 over every shard's name, size and sample count, in order: all that may be known of a stream."""
        return _hash(_STREAM_TAG, [(shard.name, shard.size, shard.samples) for shard in self.shards])

    @cached_property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class DatasetLayout:
    """A dataset: its streams in the dataset's order.

    Global sample ids number the samples stream by stream and shard by shard, from 0.

    Raises:
        SkipListError: There is no stream.
    """

    streams: tuple[StreamLayout, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", tuple(self.streams))
        if not self.streams:
            raise SkipListError("a dataset has no streams; give at least one")

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the sorted fingerprints of the streams: the same in any order of streams."""
        return _hash(_DATASET_TAG, sorted(stream.fingerprint for stream in self.streams))

    @cached_property
    def shape(self) -> str:
        """The fingerprint that the dataset has where no content is known."""
        return _hash(_DATASET_TAG, sorted(stream.shape for stream in self.streams))

    @property
    def knows_content(self) -> bool:
        """Whether the content of any shard is known."""
        return any(shard.content for shard in self.shards)

    @cached_property
    def num_samples(self) -> int:
        """Samples of all streams."""
        return sum(stream.num_samples for stream in self.streams)

    @property
    def num_shards(self) -> int:
        """Shards of all streams."""
        return len(self.shards)

    @cached_property
    def shards(self) -> tuple[ShardLayout, ...]:
        """Every shard, stream by stream."""
        return tuple(shard for stream in self.streams for shard in stream.shards)

    @cached_property
    def shard_offsets(self) -> npt.NDArray[np.int64]:
        """Global id of each shard's first sample: int64, shape (num_shards,), read-only."""
        samples = np.array([0, *(shard.samples for shard in self.shards[:-1])], dtype=np.int64)
        offsets = np.cumsum(samples)
        offsets.flags.writeable = False
        return offsets

    @cached_property
    def stream_keys(self) -> tuple[str, ...]:
        """A unique name per stream: 16 hex digits of its fingerprint, then #1, #2, … for repeats of it."""
        return _keys([stream.fingerprint for stream in self.streams])

    @cached_property
    def shape_keys(self) -> tuple[str, ...]:
        """The names that the streams have where no content is known."""
        return _keys([stream.shape for stream in self.streams])


def _keys(fingerprints: list[str]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    keys = []
    for fingerprint in fingerprints:
        key = fingerprint[:_KEY_LENGTH]
        keys.append(f"{key}#{seen[key]}" if seen[key] else key)
        seen[key] += 1
    return tuple(keys)
