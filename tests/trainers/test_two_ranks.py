"""Pruning on two ranks: real processes, gloo, Composer's launcher."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ted_stream import read_skip_list

pytestmark = [pytest.mark.composer, pytest.mark.long]

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_mds: Callable[..., str], launch: Callable[..., None]) -> Path:
    out = tmp_path_factory.mktemp("two_ranks")
    data = make_mds(203)
    for ranks in (1, 2):
        (out / str(ranks)).mkdir()
        launch(SCRIPT, data, out / str(ranks), ranks=ranks)
    return out


def results(out: Path, ranks: int) -> list[dict[str, Any]]:
    return [json.loads((out / str(ranks) / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def test_scores_and_selection_are_those_of_one_process(out: Path) -> None:
    (single,) = results(out, 1)
    for rank in results(out, 2):
        assert rank["distributed"]["scores"] == pytest.approx(single["distributed"]["scores"], rel=1e-6, nan_ok=True)
        assert rank["distributed"]["kept"] == single["distributed"]["kept"]
        assert len(rank["distributed"]["kept"]) == 123
        assert rank["distributed"]["quantiles"] == pytest.approx(single["distributed"]["quantiles"], rel=1e-6)
        assert rank["distributed"]["unmeasured"] == single["distributed"]["unmeasured"] > 0


def test_ranks_agree_and_read_exactly_the_kept_samples(out: Path) -> None:
    first, second = (rank["run"] for rank in results(out, 2))
    assert first["digests"] == second["digests"]
    assert first["weights"] == second["weights"]
    assert first["forwarded"] == second["forwarded"]
    for epoch, digest in enumerate(first["digests"]):
        skip_list = read_skip_list(out / "2" / "run" / "skip_lists" / f"ep{epoch:04d}.parquet", digest=digest)
        read = [first["ids"][epoch], second["ids"][epoch]]
        assert len(read[0]) == len(read[1])
        counts = Counter(read[0] + read[1])
        assert set(counts) == set(skip_list.kept_ids().tolist())
        assert counts.total() == first["forwarded"][epoch] <= skip_list.num_kept + 1


def test_no_rank_waits_for_one_that_failed(out: Path) -> None:
    own = ["FileNotFoundError('no shard on rank 0')", "FileNotFoundError('no shard on rank 1')"]
    heard = [f"RuntimeError('Rank {rank} failed: FileNotFoundError: no shard on rank {rank}')" for rank in range(2)]
    first, second = (rank["failures"] for rank in results(out, 2))
    assert first["every"] == ["fine", own[0], heard[1]]
    assert second["every"] == ["fine", heard[0], own[1]]
    assert first["zero"] == ["fine", own[0]]
    assert second["zero"] == ["fine", heard[0]]
    (single,) = (rank["failures"] for rank in results(out, 1))
    assert single == {"every": ["fine", own[0]], "zero": ["fine", own[0]]}


def test_sums_of_any_size(out: Path) -> None:
    expected = {
        "uint8 3": [1, 3, 5],
        "uint8 3000000": [int(2 * (np.uint8(n % 256) % 50) + 1) for n in range(2_999_997, 3_000_000)],
        "int64 3": [1, 3, 5],
        "int64 3000000": [2 * (n % 50) + 1 for n in range(2_999_997, 3_000_000)],
    }
    assert [rank["sums"] for rank in results(out, 2)] == [expected, expected]
