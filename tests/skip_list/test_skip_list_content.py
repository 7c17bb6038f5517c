"""Layouts that know what their shards hold: what is told apart, and what an older list cannot tell."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, SkipListError, StreamLayout, from_bytes, to_bytes


def with_content(layout: DatasetLayout, mark: str, kind: str = "sha1") -> DatasetLayout:
    """The same names, sizes and counts, with a content of each shard."""
    streams = []
    for at, stream in enumerate(layout.streams):
        shards = [replace(shard, content=f"{kind}:{mark}{at}{i}") for i, shard in enumerate(stream.shards)]
        streams.append(StreamLayout(shards=tuple(shards)))
    return DatasetLayout(streams=tuple(streams))


def list_of(layout: DatasetLayout) -> SkipList:
    return SkipList.from_pruned_ids(layout, np.array([0, 8, 11, 21]), epoch=7, keep_ratio=0.5, method="ted", run="r")


def test_content_enters_the_fingerprint_and_nothing_else_of_the_shape(layout):
    first, second = with_content(layout, "a"), with_content(layout, "b")
    assert len({layout.fingerprint, first.fingerprint, second.fingerprint}) == 3
    assert layout.shape == first.shape == second.shape == layout.fingerprint
    assert layout.stream_keys == layout.shape_keys == first.shape_keys
    assert not set(first.stream_keys) & set(second.stream_keys)
    assert (layout.knows_content, first.knows_content) == (False, True)
    assert list_of(first).digest != list_of(second).digest


def test_fingerprints_with_content_are_pinned():
    stream = StreamLayout(shards=(ShardLayout(name="shard.00000.mds", size=100, samples=7, content="sha1:ab"),))
    assert stream.fingerprint == "4c85804f55f02f52b9c14da4d7337bb9795843c740caf6f327a0bed78f21649d"
    assert stream.shape == "45c436f10a886baaa38e998bc8995ca5df4641ef9a1cd8d38160ea24a7116373"


@pytest.mark.parametrize("content", ["ab", ":ab", "sha1:"])
def test_a_digest_without_its_kind_is_refused(content):
    with pytest.raises(SkipListError, match=r"give a digest after its kind"):
        ShardLayout(name="a", size=1, samples=1, content=content)


def test_a_list_of_other_content_is_refused_by_what_differs(layout):
    mine, other = with_content(layout, "a"), with_content(layout, "b")
    with pytest.raises(
        SkipListError,
        match=r"agree in names, sizes and sample counts, but the content of 2 of 2 differs, of 'a/shard.00000.mds' "
        r"first \(sha1:a00 in the skip-list, sha1:b00 in the dataset\)",
    ):
        list_of(mine).aligned_to(other)
    # Of several streams the one that differs is named, though it has the shape of none before it.
    changed = DatasetLayout(streams=(*mine.streams[:2], other.streams[2]))
    with pytest.raises(SkipListError, match=r"content of 1 of 1 differs, of 'größe\.tar' first \(sha1:a20 .* sha1:b20"):
        list_of(mine).aligned_to(changed)


@pytest.mark.parametrize("weighs", [False, True])
def test_a_list_with_content_comes_back_whole(weighs, layout):
    skip_list = list_of(with_content(layout, "a"))
    if weighs:
        skip_list = replace(skip_list, weights=np.arange(1, 19, dtype=np.float32))
    assert skip_list.format_version == 3 + weighs
    assert from_bytes(to_bytes(skip_list), source="x", layout=skip_list.layout, digest=skip_list.digest) == skip_list
    # The file of a list without is what it was.
    assert replace(skip_list, layout=layout).format_version == 1 + weighs


def test_a_partly_known_content_comes_back_too(layout):
    shards = layout.streams[0].shards
    part = StreamLayout(shards=(replace(shards[0], content="sha1:a"), shards[1]))
    skip_list = list_of(DatasetLayout(streams=(part, *layout.streams[1:])))
    assert from_bytes(to_bytes(skip_list), source="x") == skip_list


@pytest.mark.parametrize(
    ("listed", "found", "words"),
    [
        (None, "sha1", "of 4 of 4 .* it was made without digests"),
        ("sha1", None, "of 4 of 4 .* the dataset has no digests"),
        ("sha1", "sampled", "of 4 of 4 .* theirs are of different kinds"),
    ],
)
def test_what_cannot_be_compared_is_matched_by_names_with_one_warning(listed, found, words, layout):
    before = layout if listed is None else with_content(layout, "a", listed)
    dataset = layout if found is None else with_content(layout, "b", found)
    turned = DatasetLayout(streams=(dataset.streams[2], *dataset.streams[:2]))
    skip_list = list_of(before)
    with pytest.warns(UserWarning, match=f"(?s)run 'r', epoch 7, .*{words}") as told:
        aligned = skip_list.aligned_to(turned)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert aligned.layout == turned
    moved = np.concatenate([skip_list.keep_mask()[17:], skip_list.keep_mask()[:17]])
    assert np.array_equal(aligned.keep_mask(), moved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert aligned.aligned_to(dataset).aligned_to(turned) == aligned  # it belongs to the dataset now


def test_streams_of_one_shape_are_told_apart_by_content():
    """Without content they are twins, of which the first stays the first."""
    shard = ShardLayout(name="shard.00000.mds", size=9, samples=4)
    plain = StreamLayout(shards=(shard,))
    first, second = (StreamLayout(shards=(replace(shard, content=f"sha1:{mark}"),)) for mark in "ab")
    names = {"epoch": 1, "keep_ratio": 0.5, "method": "ted", "run": "r"}
    pruned = np.array([0, 5])
    skip_list = SkipList.from_pruned_ids(DatasetLayout(streams=(first, second)), pruned, **names)
    swapped = skip_list.aligned_to(DatasetLayout(streams=(second, first)))
    assert swapped.pruned_ids().tolist() == [1, 4]
    old = SkipList.from_pruned_ids(DatasetLayout(streams=(plain, plain)), pruned, **names)
    with pytest.warns(UserWarning, match="could not be checked"):
        assert old.aligned_to(DatasetLayout(streams=(second, first))).pruned_ids().tolist() == [0, 5]
    # What is known comes first: the stream that is left over may be the unknown one.
    mixed = SkipList.from_pruned_ids(DatasetLayout(streams=(plain, second)), pruned, **names)
    with pytest.warns(UserWarning, match="content of 1 of 2 is the same"):
        assert mixed.aligned_to(DatasetLayout(streams=(second, first))).pruned_ids().tolist() == [1, 4]
