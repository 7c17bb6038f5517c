from itertools import permutations

import numpy as np
import pytest

from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipListError, StreamLayout


def _stream(*shards: tuple[str, int, int]) -> StreamLayout:
    return StreamLayout(shards=tuple(ShardLayout(name=n, size=b, samples=s) for n, b, s in shards))


def test_counts_and_offsets_number_samples_stream_by_stream(layout):
    assert (layout.num_samples, layout.num_shards) == (22, 4)
    assert layout.shard_offsets.dtype == np.int64
    assert layout.shard_offsets.tolist() == [0, 7, 10, 17]
    assert [shard.samples for shard in layout.shards] == [7, 3, 7, 5]
    with pytest.raises(ValueError, match="read-only"):
        layout.shard_offsets[0] = 1


def test_dataset_fingerprint_survives_reordered_streams(layout):
    for streams in permutations(layout.streams):
        assert DatasetLayout(streams=streams).fingerprint == layout.fingerprint
    assert DatasetLayout(streams=layout.streams[:2]).fingerprint != layout.fingerprint


def test_fingerprints_are_pinned():
    stream = _stream(("shard.00000.mds", 100, 7))
    assert stream.fingerprint == "45c436f10a886baaa38e998bc8995ca5df4641ef9a1cd8d38160ea24a7116373"
    assert DatasetLayout(streams=(stream,)).fingerprint == (
        "910ee2b146fd6610b6c030ee1721d81a9a37b811abe4d459acac47c997c98b72"
    )


def test_stream_fingerprint_depends_on_names_sizes_counts_order_and_their_boundaries():
    variants = [
        _stream(("a", 1, 2), ("b", 3, 4)),
        _stream(("b", 3, 4), ("a", 1, 2)),
        _stream(("a", 1, 2)),
        _stream(("c", 1, 2), ("b", 3, 4)),
        _stream(("a", 2, 2), ("b", 3, 4)),
        _stream(("a", 1, 3), ("b", 3, 4)),
        _stream(('a",1,2],["b', 3, 4)),
        _stream(("a", 11, 2), ("b", 3, 4)),
        _stream(("a1", 1, 2), ("b", 3, 4)),
    ]
    assert len({stream.fingerprint for stream in variants}) == len(variants)


def test_twin_streams_get_numbered_keys():
    twin, other = _stream(("a", 1, 2)), _stream(("b", 1, 2))
    keys = DatasetLayout(streams=(twin, other, twin, twin)).stream_keys
    assert keys == (
        twin.fingerprint[:16],
        other.fingerprint[:16],
        twin.fingerprint[:16] + "#1",
        twin.fingerprint[:16] + "#2",
    )


@pytest.mark.parametrize(
    ("name", "size", "samples", "message"),
    [
        ("", 1, 1, "empty name"),
        ("\udcff", 1, 1, "Unicode"),
        ("a", -1, 1, "size -1"),
        ("a", 2**63, 1, "size 9223372036854775808"),
        ("a", 1, 0, "0 samples"),
        ("a", 1, -3, "-3 samples"),
        ("a", 1, 2**32, "4294967296 samples"),
    ],
)
def test_impossible_shards_are_refused(name, size, samples, message):
    with pytest.raises(SkipListError, match=message):
        ShardLayout(name=name, size=size, samples=samples)


def test_empty_and_ambiguous_layouts_are_refused():
    with pytest.raises(SkipListError, match="no streams"):
        DatasetLayout(streams=())
    with pytest.raises(SkipListError, match="no shards"):
        StreamLayout(shards=())
    with pytest.raises(SkipListError, match="'a' occurs 2 times"):
        _stream(("a", 1, 1), ("b", 1, 1), ("a", 2, 2))


def test_numpy_integers_are_taken_as_values():
    shard = ShardLayout(name="a", size=np.int64(3), samples=np.int32(4))  # pyright: ignore[reportArgumentType]
    assert shard == ShardLayout(name="a", size=3, samples=4)
    assert _stream(("a", 3, 4)).fingerprint == StreamLayout(shards=(shard,)).fingerprint
