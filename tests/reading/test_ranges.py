"""Which byte ranges are asked for, checked property by property against what the words say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ted_stream.reading import ranges
from ted_stream.reading.ranges import choose_ranges, chunks, merge_samples

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=60)


@settings(deadline=None)
@given(sizes=SIZES, min_gap=st.integers(0, 60), longest=st.integers(1, 3000), data=st.data())
def test_runs_hold_what_is_wanted_and_no_gap_worth_a_request(
    sizes: list[int], min_gap: int, longest: int, data: st.DataObject
) -> None:
    offsets = np.concatenate(([7], 7 + np.cumsum(sizes)))
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "MAX_REQUEST", longest)
        runs = merge_samples(offsets, wanted, min_gap=min_gap)
    inside = [sample for first, stop in runs.tolist() for sample in range(first, stop)]
    assert inside == sorted(set(inside))
    assert set(wanted.tolist()) <= set(inside)
    for first, stop in runs.tolist():
        members = [sample for sample in wanted.tolist() if first <= sample < stop]
        assert (members[0], members[-1]) == (first, stop - 1)  # no request begins or ends with unwanted bytes
        for here, there in itertools.pairwise(members):
            assert offsets[there] - offsets[here + 1] < max(min_gap, 1)
        assert offsets[members[-1]] - offsets[first] < longest  # one sample alone may be longer
    if longest > sum(sizes):
        for (_, stop), (first, _) in itertools.pairwise(runs.tolist()):
            assert offsets[first] - offsets[stop] >= max(min_gap, 1)


@settings(deadline=None)
@given(sizes=SIZES, latency=st.integers(0, 200), min_gap=st.integers(0, 60), data=st.data())
def test_the_cheaper_way_is_taken(sizes: list[int], latency: int, min_gap: int, data: st.DataObject) -> None:
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))))
    size = int(offsets[-1])
    runs = merge_samples(offsets, wanted, min_gap=min_gap)
    by_ranges = sum(int(offsets[stop] - offsets[first]) + latency for first, stop in runs.tolist())
    whole = size + latency * len(chunks(size))
    chosen = choose_ranges(offsets, wanted, size=size, request_latency=latency, min_gap=min_gap)
    assert (chosen is None) == (by_ranges >= whole)
    if chosen is not None:
        assert chosen.tolist() == runs.tolist()


def test_a_whole_file_in_requests() -> None:
    assert chunks(0) == []
    assert chunks(5) == [(0, 5)]
    parts = chunks(20 << 20)
    assert parts == [(0, 8 << 20), (8 << 20, 16 << 20), (16 << 20, 20 << 20)]
