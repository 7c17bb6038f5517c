"""A run is the same on any number of ranks, and its parts may run on different numbers of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ted_stream import TED, read_skip_list
from ted_stream.testing.runs import Run, described, load_result, sample_order, start_runs

pytestmark = [pytest.mark.composer, pytest.mark.long]

EPOCHS = 5
# Every epoch keeps an even number of these, so two ranks train on what one does, without padding repeats.
NUM_SAMPLES = 164
# Stopped at 2 ranks in epoch 1, at 1 rank in epoch 1 and in epoch 2, and at 2 ranks again to the end.
STOPS = [(2, 24), (1, 28), (1, 35), (2, None)]


def elastic(name: str, parallelism: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for number, (ranks, stop) in enumerate(STOPS):
        part = {"name": f"{name}{number}", "ranks": ranks, "stop_after": stop, "save_interval": "1ba"}
        parts.append(part | {"parallelism": parallelism, "start_from": f"{name}{number - 1}" if number else None})
    return parts


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_mds: Callable[..., str]) -> Path:
    out = tmp_path_factory.mktemp("world_sizes")
    runs: list[dict[str, Any]] = [
        {"name": "one", "ranks": 1},
        {"name": "ddp"},
        {"name": "fsdp2", "parallelism": "full"},
        {"name": "replicated", "replication": 2},
        *elastic("elastic", "ddp"),
        *elastic("sharded", "sharded"),
    ]
    for event, rank in (("selected", 0), ("selected", 1), ("writing", 0)):
        name = f"{event}{rank}"
        kill = {"event": event, "rank": rank, "epoch": 2}
        runs.append({"name": name, "save_interval": "1ep", "kill": kill})
        runs.append({"name": f"{name}-again", "save_interval": "1ep", "start_from": name})
    common = {"data": make_mds(NUM_SAMPLES), "epochs": EPOCHS, "double": True, **described(TED(0.6))}
    start_runs([Run(**(common | run)) for run in runs], out)
    return out


def batches(out: Path, name: str, epoch: int) -> list[list[int]]:
    """The sample ids of every global batch that a run trained in an epoch."""
    found: dict[int, list[int]] = {}
    for rank in range(len(list((out / name).glob("steps*.jsonl")))):
        for (at, batch), ids in sample_order(out, name, rank).items():
            if at == epoch:
                found.setdefault(batch, []).extend(ids)
    return [sorted(ids) for _, ids in sorted(found.items())]


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_ranks_make_the_skip_lists_of_one(parallelism: str, out: Path) -> None:
    one, two = load_result(out, "one"), load_result(out, parallelism)
    assert [record["kept"] % 2 for record in one["records"]] == [0] * EPOCHS
    for epoch in range(EPOCHS):
        assert batches(out, parallelism, epoch) == batches(out, "one", epoch)
    assert two["records"] == one["records"]
    assert len({record["digest"] for record in one["records"]}) == EPOCHS
    np.testing.assert_allclose(two["scores"], one["scores"], rtol=1e-6)


def test_ranks_that_replicate_each_other_count_once(out: Path) -> None:
    assert load_result(out, "replicated")["records"] == load_result(out, "one")["records"]


@pytest.mark.parametrize("name", ["elastic", "sharded"])
def test_a_run_moves_between_world_sizes(name: str, out: Path) -> None:
    """Two ranks, one, and two again: every kept sample once per epoch, and the lists of a run that never moved."""
    moved = load_result(out, f"{name}{len(STOPS) - 1}")
    assert moved["records"] == load_result(out, "one")["records"]
    assert not np.isnan(moved["scores"]).any()
    # The order that a part wrote is copied on with its folder, so the last part has that of all.
    last = out / f"{name}{len(STOPS) - 1}"
    for epoch, record in enumerate(moved["records"]):
        skip_list = read_skip_list(last / "run" / "skip_lists" / f"ep{epoch:04d}.parquet", digest=record["digest"])
        trained = [sample for batch in batches(out, last.name, epoch) for sample in batch]
        assert sorted(trained) == skip_list.kept_ids().tolist()


@pytest.mark.parametrize("death", ["selected0", "selected1", "writing0"])
def test_a_death_at_the_boundary_leaves_no_half_a_list(death: str, out: Path) -> None:
    found = sorted(path.name for path in (out / death / "run" / "skip_lists").glob("*.parquet"))
    assert found == ["ep0000.parquet", "ep0001.parquet"]
    for name in found:
        read_skip_list(out / death / "run" / "skip_lists" / name)
    half = list((out / death / "run" / "skip_lists").glob(".*.tmp"))
    assert len(half) == (death == "writing0")  # the death was in the middle of it
    assert load_result(out, f"{death}-again")["records"] == load_result(out, "ddp")["records"]
