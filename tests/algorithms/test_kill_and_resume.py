"""Runs on two ranks that die by SIGKILL and go on by themselves end as the run that lived."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ted_stream import TED, read_skip_list

SCRIPT = Path(__file__).with_name("forked_runs.py")
NUM_SAMPLES = 131
EPOCHS = 5
RANKS = 2
GLOBAL_BATCH_SIZE = 8
TED_SETTINGS = {"prune_ratio": 0.6, "relative": True}
EVENTS = ["batch_start", "before_forward", "after_backward", "batch_end", "batch_checkpoint"]


def steps_per_epoch() -> list[int]:
    schedule = TED(0.6).schedule
    kept = [schedule.num_kept(epoch, EPOCHS, NUM_SAMPLES) for epoch in range(EPOCHS)]
    return [-(-count // GLOBAL_BATCH_SIZE) for count in kept]


def trials() -> list[dict[str, Any]]:
    rng = np.random.default_rng(20)
    found = []
    for number in range(20):
        parallelism = ("ddp", "full", "ddp", "sharded")[number % 4]
        epoch = int(rng.integers(EPOCHS))
        event = EVENTS[rng.integers(len(EVENTS))]
        # At the end of a batch, it has been counted.
        counted = int(event in ("batch_end", "batch_checkpoint"))
        batch = int(rng.integers(steps_per_epoch()[epoch])) + counted
        found.append(
            {
                "name": f"{number:02d}-{parallelism}",
                "parallelism": parallelism,
                "workers": 2 * (number // 4 % 2),
                "save_interval": f"{rng.integers(1, 6)}ba",
                "kill": {"rank": int(rng.integers(RANKS)), "event": event, "epoch": epoch, "batch": batch},
            }
        )
    return found


TRIALS = trials()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_mds: Callable[..., str], launch: Callable[..., None]) -> Path:
    out = tmp_path_factory.mktemp("killed")
    runs = [
        {"name": f"{parallelism}-{workers}", "parallelism": parallelism, "workers": workers}
        for parallelism in ("ddp", "full")
        for workers in (0, 2)
    ]
    for trial in TRIALS:
        runs += [trial, trial | {"kill": None}]
    common = {"data": make_mds(NUM_SAMPLES), "epochs": EPOCHS, "dropout": 0.2, "ted": TED_SETTINGS}
    (out / "runs.json").write_text(json.dumps([common | run for run in runs]))
    launch(SCRIPT, out, ranks=RANKS, timeout=900)
    return out


def sample_order(folder: Path, rank: int) -> dict[tuple[int, int], list[int]]:
    """The ids of every batch; where a batch was trained in both attempts, they must agree."""
    order: dict[tuple[int, int], list[int]] = {}
    for line in (folder / f"order{rank}.jsonl").read_text().splitlines():
        epoch, batch, ids = json.loads(line)
        assert order.setdefault((epoch, batch), ids) == ids
    return order


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: f"{trial['name']}-{trial['workers']}-{trial['kill']}")
def test_a_killed_run_ends_as_the_one_that_lived(trial: dict[str, Any], out: Path) -> None:
    parallelism = "ddp" if trial["parallelism"] == "ddp" else "full"
    lived = out / f"{parallelism}-{trial['workers']}"
    killed = out / trial["name"]
    for rank in range(RANKS):
        expected = torch.load(lived / f"rank{rank}.pt", weights_only=False)
        found = torch.load(killed / f"rank{rank}.pt", weights_only=False)
        assert found["records"] == expected["records"]
        assert np.array_equal(found["scores"], expected["scores"])
        assert found["weights"].keys() == expected["weights"].keys()
        for name, weight in expected["weights"].items():
            assert np.array_equal(found["weights"][name], weight), name
        assert sample_order(killed, rank) == sample_order(lived, rank)
    for record in json.loads((killed / "run" / "run.json").read_text())["epochs"]:
        read_skip_list(killed / "run" / record["skip_list"], digest=record["digest"])


def test_the_runs_prune_and_shuffle(out: Path) -> None:
    """The comparison above could not fail for runs that do nothing."""
    result = torch.load(out / "ddp-0" / "rank0.pt", weights_only=False)
    assert [record["kept"] for record in result["records"]] != [NUM_SAMPLES] * EPOCHS
    assert len({record["digest"] for record in result["records"]}) == EPOCHS
    orders = [sample_order(out / "ddp-0", rank) for rank in range(RANKS)]
    assert [len([b for e, b in orders[0] if e == epoch]) for epoch in range(EPOCHS)] == steps_per_epoch()
    assert orders[0] != orders[1]
