from dataclasses import replace

import numpy as np
import pytest

from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout


@pytest.fixture
def layout() -> DatasetLayout:
    """Three streams of 2, 1 and 1 shards; 22 samples; shard names shared between streams."""
    first = StreamLayout(
        shards=(
            ShardLayout(name="a/shard.00000.mds", size=100, samples=7),
            ShardLayout(name="a/shard.00001.mds", size=40, samples=3),
        )
    )
    second = StreamLayout(shards=(ShardLayout(name="a/shard.00000.mds", size=90, samples=7),))
    third = StreamLayout(shards=(ShardLayout(name="größe.tar", size=0, samples=5),))
    return DatasetLayout(streams=(first, second, third))


@pytest.fixture
def skip_list(layout: DatasetLayout) -> SkipList:
    ids = np.array([21, 0, 8, 3, 11, 10, 16], dtype=np.int64)
    return SkipList.from_pruned_ids(layout, ids, epoch=7, keep_ratio=2 / 3, method="ted", run="run-1")


@pytest.fixture
def weighted(skip_list: SkipList) -> SkipList:
    """The same with weights 1/8, 2/8, … of the kept samples."""
    return replace(skip_list, weights=np.arange(1, 16, dtype=np.float32) / 8)


@pytest.fixture(params=["without weights", "weighted"])
def each(request: pytest.FixtureRequest, skip_list: SkipList, weighted: SkipList) -> SkipList:
    """The list of each format version."""
    return weighted if request.param == "weighted" else skip_list
