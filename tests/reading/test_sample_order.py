"""The order of samples: stock's without a list, all of the kept ones and no pruned one with a list."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streaming.base.shuffle import algos

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).with_name("sample_order.py")
NUM_SAMPLES = 331


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.composer)], ids=["1 rank", "2 ranks"])
def by_rank(
    request: pytest.FixtureRequest,
    make_mds: Callable[..., str],
    launch: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("order")
    launch(SCRIPT, make_mds(NUM_SAMPLES), out, ranks=request.param)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(request.param)]


def test_without_pruning_the_order_is_stocks(by_rank: list[dict[str, Any]]) -> None:
    for rank in by_rank:
        assert len(rank["everything"]) == 2 * len(algos)
        for case, orders in rank["everything"].items():
            assert len(orders["stock"][0]) >= NUM_SAMPLES // len(by_rank), case
            assert orders["stock"][0] != orders["stock"][1], case  # a fresh shuffle per epoch
            assert orders["no list"] == orders["stock"], case
            assert orders["empty list"] == orders["stock"], case


def test_exactly_the_kept_samples_are_read(by_rank: list[dict[str, Any]]) -> None:
    for case in by_rank[0]["pruned"]:
        kept = by_rank[0]["pruned"][case]["kept"]
        for epoch in range(2):
            read = [rank["pruned"][case]["ids"][epoch] for rank in by_rank]
            counts = Counter(itertools.chain(*read))
            assert set(counts) == set(kept), case
            # Canonical nodes are padded to equal length, then every rank: at most one repeat for each.
            assert sum(counts.values()) - len(kept) <= 2 + len(by_rank), case
            assert [len(ids) for ids in read] == [rank["pruned"][case]["len"] for rank in by_rank], case
