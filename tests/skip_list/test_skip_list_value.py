import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap, FrozenBitMap

from ted_stream.skip_list import (
    DatasetLayout,
    ShardLayout,
    SkipList,
    SkipListError,
    StreamLayout,
    from_bytes,
    to_bytes,
)

_WORDS = {"epoch": 0, "keep_ratio": 0.5, "method": "ted", "run": ""}


def _layout(streams: list[list[int]]) -> DatasetLayout:
    """A layout with these sample counts, per stream and shard."""
    return DatasetLayout(
        streams=tuple(
            StreamLayout(
                shards=tuple(ShardLayout(name=f"shard.{i:05d}.mds", size=9, samples=n) for i, n in enumerate(s))
            )
            for s in streams
        )
    )


def _ids_of(layout: DatasetLayout, stream_key: str) -> slice:
    """The global ids of a stream."""
    ends = np.cumsum([stream.num_samples for stream in layout.streams])
    place = layout.stream_keys.index(stream_key)
    return slice(ends[place] - layout.streams[place].num_samples, ends[place])


@st.composite
def _masks(draw):
    counts = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
    layout = _layout(counts)
    bits = draw(st.integers(0, 2**layout.num_samples - 1))
    kept = st.sampled_from([bits, 0, 2**layout.num_samples - 1])
    mask = np.array([draw(kept) >> i & 1 for i in range(layout.num_samples)], dtype=np.bool_)
    return layout, mask, draw(st.permutations(range(len(counts))))


@settings(max_examples=60, deadline=None)
@given(_masks())
def test_mask_ids_and_bitmaps_say_the_same(case):
    layout, keep, order = case
    skip_list = SkipList.from_keep_mask(layout, keep, **_WORDS)
    ids = skip_list.pruned_ids()
    assert ids.dtype == np.int64
    assert np.array_equal(ids, np.flatnonzero(~keep))
    assert skip_list.keep_mask().dtype == np.bool_
    assert np.array_equal(skip_list.keep_mask(), keep)
    assert np.array_equal(skip_list.kept_ids(), np.flatnonzero(keep))
    assert SkipList.from_pruned_ids(layout, ids[::-1], **_WORDS) == skip_list
    assert skip_list.num_kept + skip_list.num_pruned == skip_list.num_samples == len(keep)
    assert skip_list.num_kept == keep.sum() == skip_list.kept_per_shard.sum()
    starts = layout.shard_offsets
    assert [list(b) for b in skip_list.pruned] == [
        np.flatnonzero(~keep[o : o + s.samples]).tolist() for o, s in zip(starts, layout.shards, strict=True)
    ]

    weights = np.random.default_rng(len(keep)).permutation(skip_list.num_kept).astype(np.float32) + 1
    weighted = SkipList.from_keep_mask(layout, keep, **_WORDS, weights=weights)
    assert SkipList.from_pruned_ids(layout, ids, **_WORDS, weights=weights) == weighted != skip_list
    assert SkipList.from_keep_bits(layout, np.packbits(keep), **_WORDS, weights=weights) == weighted
    assert np.array_equal(weighted.weights_by_id()[keep], weights)
    assert np.isnan(weighted.weights_by_id()[~keep]).all()
    assert from_bytes(to_bytes(weighted), source="memory", digest=weighted.digest) == weighted

    reordered = DatasetLayout(streams=tuple(layout.streams[i] for i in order))
    for made in (skip_list, weighted):
        aligned = made.aligned_to(reordered)
        assert aligned.digest == made.digest
        assert aligned.layout == reordered
        assert aligned.aligned_to(layout) == made
    # Every sample keeps its weight, under its new id.
    moved = np.concatenate([weighted.weights_by_id()[_ids_of(layout, name)] for name in reordered.stream_keys])
    assert np.array_equal(weighted.aligned_to(reordered).weights_by_id(), moved, equal_nan=True)


def test_many_small_shards():
    layout = _layout([[3] * 2000])
    skip_list = SkipList.from_pruned_ids(layout, np.arange(1, 6000, 3), **_WORDS)
    assert skip_list.kept_per_shard.tolist() == [2] * 2000
    assert np.array_equal(skip_list.pruned_ids(), np.arange(1, 6000, 3))


def test_the_last_position_of_the_largest_shard():
    layout = _layout([[2**32 - 1, 2]])
    skip_list = SkipList.from_pruned_ids(layout, np.array([2**32 - 2, 2**32]), **_WORDS)
    assert [list(b) for b in skip_list.pruned] == [[2**32 - 2], [1]]
    assert skip_list.pruned_ids().tolist() == [2**32 - 2, 2**32]


def test_equal_by_value_and_immutable(skip_list, layout):
    again = SkipList(
        layout=layout,
        pruned=tuple(BitMap(list(b)) for b in skip_list.pruned),
        epoch=7,
        keep_ratio=2 / 3,
        method="ted",
        run="run-1",
    )
    assert again == skip_list
    assert hash(again) == hash(skip_list)
    assert pickle.loads(pickle.dumps(skip_list)) == skip_list
    assert replace(skip_list, run="run-2") != skip_list
    with pytest.raises(FrozenInstanceError):
        skip_list.epoch = 8


def test_weights_are_part_of_the_value(skip_list, weighted):
    assert weighted != skip_list
    assert weighted.digest != skip_list.digest
    assert (skip_list.format_version, weighted.format_version) == (1, 2)
    changed = weighted.weights.copy()
    changed[-1] = 9
    other = replace(weighted, weights=changed)
    assert other != weighted
    assert other.digest != weighted.digest
    again = replace(weighted, weights=weighted.weights.astype(np.float64))
    assert again == weighted
    assert hash(again) == hash(weighted)
    assert weighted.without_weights() == skip_list == skip_list.without_weights()
    assert skip_list.weights is None
    by_id = skip_list.weights_by_id()
    assert by_id.dtype == np.float32
    assert np.array_equal(by_id, np.where(skip_list.keep_mask(), 1, np.nan), equal_nan=True)
    assert "weights" not in repr(weighted)
    assert weighted != "a list"


@pytest.mark.parametrize("same", [lambda s: s, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_weights_stay_as_they_are(weighted, same):
    mine = weighted.weights.copy()
    made = same(replace(weighted, weights=mine))
    mine[0] = 100
    assert made == weighted
    with pytest.raises(ValueError, match="read-only"):
        made.weights[0] = 1
    view = mine[:]
    view.flags.writeable = False  # of what a caller can write to
    made = replace(weighted, weights=view)
    mine[0] = 7
    assert made.weights[0] == 100


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(14, np.float32), r"shape \(14,\) and dtype float32; .* 15 kept samples"),
        (np.ones((15, 1), np.float32), r"shape \(15, 1\)"),
        (np.ones(15, np.int64), "int64; give float32"),
        (np.ones(15, np.complex64), "complex64"),
        (["a"] * 15, "<U1"),
        (
            np.array([1.0] * 6 + [0] + [1] * 7 + [np.nan]),
            r"2 of 15 weights .* first 0\.0 in shard 'a/shard\.00001\.mds'",
        ),
        (np.array([1.0] * 14 + [-2]), r"1 of 15 weights .* first -2\.0 in shard 'größe\.tar'"),
        (np.array([np.inf] + [1] * 14), r"first inf in shard 'a/shard\.00000\.mds'"),
        (np.full(15, 1e300), r"15 of 15 .* first inf"),
        (np.full(15, 1e-300), r"15 of 15 .* first 0\.0"),
    ],
)
def test_impossible_weights_are_refused(skip_list, weights, message):
    with pytest.raises(SkipListError, match=message):
        replace(skip_list, weights=weights)


def test_twin_streams_keep_their_own_weights():
    layout = _layout([[2], [3], [2]])
    skip_list = SkipList.from_pruned_ids(layout, np.array([0, 3]), **_WORDS, weights=np.arange(1, 6, dtype=np.float32))
    swapped = skip_list.aligned_to(_layout([[2], [2], [3]]))
    assert swapped.weights is not None
    assert swapped.weights.tolist() == [1, 4, 5, 2, 3]
    assert swapped.digest == skip_list.digest
    exchanged = skip_list.weights
    assert exchanged is not None
    assert replace(skip_list, weights=exchanged[::-1]).digest != skip_list.digest


def test_a_callers_bitmap_is_copied():
    mine = BitMap([1])
    skip_list = SkipList(layout=_layout([[4]]), pruned=(mine,), **_WORDS)
    mine.add(2)
    assert skip_list.pruned_ids().tolist() == [1]
    assert not hasattr(skip_list.pruned[0], "add")


def test_digest_ignores_run_and_container_choice(skip_list):
    assert replace(skip_list, run="another").digest == skip_list.digest
    layout = _layout([[10_000]])
    runs = FrozenBitMap(range(4000))
    arrays = FrozenBitMap([*range(3999), 3999], optimize=False)
    assert runs.serialize() != arrays.serialize()
    made = [SkipList(layout=layout, pruned=(b,), **_WORDS) for b in (runs, arrays)]
    assert made[0] == made[1]
    assert made[0].digest == made[1].digest


def test_digest_depends_on_everything_that_selects(skip_list, layout):
    bigger = replace(layout.streams[2].shards[0], size=1)
    other = DatasetLayout(streams=(*layout.streams[:2], StreamLayout(shards=(bigger,))))
    moved = (skip_list.pruned[0], BitMap([0]), *skip_list.pruned[2:])
    variants = [
        skip_list,
        replace(skip_list, epoch=8),
        replace(skip_list, keep_ratio=0.66),
        replace(skip_list, method="infobatch"),
        replace(skip_list, layout=other),
        replace(skip_list, pruned=moved),
        replace(skip_list, pruned=(BitMap(), *skip_list.pruned[1:])),
    ]
    assert len({v.digest for v in variants}) == len(variants)


def test_negative_zero_keep_ratio_is_zero(skip_list):
    zero, negative = replace(skip_list, keep_ratio=0.0), replace(skip_list, keep_ratio=-0.0)
    assert zero == negative
    assert zero.digest == negative.digest


def test_every_stream_order_aligns_and_keeps_each_shards_positions(skip_list, layout):
    per_stream = {
        layout.streams[0]: skip_list.pruned[:2],
        layout.streams[1]: skip_list.pruned[2:3],
        layout.streams[2]: skip_list.pruned[3:],
    }
    for streams in permutations(layout.streams):
        aligned = skip_list.aligned_to(DatasetLayout(streams=streams))
        assert aligned.pruned == tuple(b for s in streams for b in per_stream[s])
        assert aligned.digest == skip_list.digest


def test_twin_streams_keep_their_own_rows():
    layout = _layout([[4], [6], [4]])
    skip_list = SkipList.from_pruned_ids(layout, np.array([0, 5, 13]), **_WORDS)
    swapped = skip_list.aligned_to(_layout([[4], [4], [6]]))
    assert [list(b) for b in swapped.pruned] == [[0], [3], [1]]
    exchanged = replace(skip_list, pruned=skip_list.pruned[::-1])
    assert exchanged.digest != skip_list.digest


def test_another_dataset_is_refused_with_both_fingerprints_and_the_first_difference(skip_list, layout):
    def changed(*shards: ShardLayout) -> DatasetLayout:
        return DatasetLayout(streams=(StreamLayout(shards=shards), *layout.streams[1:]))

    first, second = layout.streams[0].shards
    cases = {
        r"'a/shard\.00001\.mds' is in the skip-list but missing from the dataset \(2 .* 1 in": changed(first),
        "'new' is in the dataset but unknown to the skip-list": changed(
            first, second, ShardLayout(name="new", size=1, samples=1)
        ),
        "has 3 samples in the skip-list, 4 in the dataset": changed(first, replace(second, samples=4)),
        "has 40 bytes in the skip-list, 41 in the dataset": changed(first, replace(second, size=41)),
        r"shard number 0 is 'a/shard\.00000\.mds' in the skip-list, 'a/shard\.00001\.mds'": changed(second, first),
        "the skip-list has 3 streams, the dataset 2": DatasetLayout(streams=layout.streams[:2]),
    }
    for message, other in cases.items():
        with pytest.raises(SkipListError, match=message) as caught:
            skip_list.aligned_to(other)
        assert layout.fingerprint in str(caught.value)
        assert other.fingerprint in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([22], "outside \\[0, 22\\)"),
        ([-1, 3], "from -1 to 3"),
        ([5, 1, 5], "repeats 1 ids, the first 5"),
        ([0.5], "float64"),
        ([[1]], "shape \\(1, 1\\)"),
        ([True], "bool"),
    ],
)
def test_impossible_ids_are_refused(layout, ids, message):
    with pytest.raises(SkipListError, match=message):
        SkipList.from_pruned_ids(layout, np.array(ids), **_WORDS)


def test_impossible_masks_and_bitmaps_are_refused(layout):
    with pytest.raises(SkipListError, match=r"shape \(21,\).*\(22,\)"):
        SkipList.from_keep_mask(layout, np.ones(21, dtype=np.bool_), **_WORDS)
    with pytest.raises(SkipListError, match="int64"):
        SkipList.from_keep_mask(layout, np.ones(22, dtype=np.int64), **_WORDS)  # pyright: ignore[reportArgumentType]
    for wrong in (np.ones(2, dtype=np.uint8), np.ones(3, dtype=np.int64)):
        with pytest.raises(SkipListError, match=rf"shape \({len(wrong)},\).*{wrong.dtype}.*uint8, shape \(3,\)"):
            SkipList.from_keep_bits(layout, wrong, **_WORDS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SkipListError, match="3 bitmaps for 4 shards"):
        SkipList(layout=layout, pruned=(BitMap(),) * 3, **_WORDS)
    with pytest.raises(SkipListError, match=r"position 7 .* 7 samples"):
        SkipList(layout=layout, pruned=(BitMap([7]), BitMap(), BitMap(), BitMap()), **_WORDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": -1}, "epoch is -1"),
        ({"keep_ratio": 1.5}, "keep_ratio is 1.5"),
        ({"keep_ratio": float("nan")}, "keep_ratio is nan"),
        ({"run": "\ud800"}, "Unicode"),
    ],
)
def test_impossible_facts_are_refused(skip_list, change, message):
    with pytest.raises(SkipListError, match=message):
        replace(skip_list, **change)
