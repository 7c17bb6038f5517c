"""Runs on two ranks that die by SIGKILL and go on by themselves end as the run that lived."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ted_stream import TED, read_skip_list
from ted_stream.testing.runs import Run, described, load_result, sample_order, start_runs

pytestmark = [pytest.mark.composer, pytest.mark.long]

NUM_SAMPLES = 131
EPOCHS = 5
RANKS = 2
WORKERS = (0, 1, 4)
GLOBAL_BATCH_SIZE = 8
EVENTS = ["batch_start", "before_forward", "after_backward", "batch_end", "batch_checkpoint"]


def steps_per_epoch() -> list[int]:
    schedule = TED(0.6).keep_ratios
    kept = [schedule.num_kept(epoch, EPOCHS, NUM_SAMPLES) for epoch in range(EPOCHS)]
    return [-(-count // GLOBAL_BATCH_SIZE) for count in kept]


def trials() -> list[dict[str, Any]]:
    rng = np.random.default_rng(20)
    found = []
    for number in range(4 * len(WORKERS)):
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
                "workers": WORKERS[number // 4 % 3],
                "save_interval": f"{rng.integers(1, 6)}ba",
                "kill": {"rank": int(rng.integers(RANKS)), "event": event, "epoch": epoch, "batch": batch},
            }
        )
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_mds: Callable[..., str]) -> Path:
    out, data = tmp_path_factory.mktemp("killed"), make_mds(NUM_SAMPLES)
    lived = {_lived(trial): trial["workers"] for trial in trials()}
    runs = [
        {"name": name, "parallelism": name.partition("-")[0], "workers": workers} for name, workers in lived.items()
    ]
    for trial in trials():
        runs += [trial, trial | {"kill": None}]
    method = described(TED(0.6, relative=True))
    common = {"data": data, "epochs": EPOCHS, "dropout": 0.2, "augment": True, "ranks": RANKS, **method}
    start_runs([Run(**(common | run)) for run in runs], out, timeout=1200)
    return out


def _lived(trial: dict[str, Any]) -> str:
    """The run without a kill that a trial is compared with."""
    return f"{'ddp' if trial['parallelism'] == 'ddp' else 'full'}-{trial['workers']}"


def _id(trial: dict[str, Any]) -> str:
    return f"{trial['name']}-{trial['workers']}-{trial['kill']}"


@pytest.mark.parametrize("trial", trials(), ids=_id)
def test_a_killed_run_ends_as_the_one_that_lived(trial: dict[str, Any], out: Path) -> None:
    lived, killed = _lived(trial), trial["name"]
    for rank in range(RANKS):
        expected, found = load_result(out, lived, rank), load_result(out, killed, rank)
        assert found["records"] == expected["records"]
        assert np.array_equal(found["scores"], expected["scores"])
        assert found["weights"].keys() == expected["weights"].keys()
        for name, weight in expected["weights"].items():
            assert np.array_equal(found["weights"][name], weight), name
        assert sample_order(out, killed, rank) == sample_order(out, lived, rank)
    for record in json.loads((out / killed / "run" / "run.json").read_text())["epochs"]:
        read_skip_list(out / killed / "run" / record["skip_list"], digest=record["digest"])


def test_the_runs_prune_and_shuffle(out: Path) -> None:
    """The comparison above could not fail for runs that do nothing."""
    result = load_result(out, "ddp-0")
    assert [record["kept"] for record in result["records"]] != [NUM_SAMPLES] * EPOCHS
    assert len({record["digest"] for record in result["records"]}) == EPOCHS
    orders = [sample_order(out, "ddp-0", rank) for rank in range(RANKS)]
    assert [len([b for e, b in orders[0] if e == epoch]) for epoch in range(EPOCHS)] == steps_per_epoch()
    assert orders[0] != orders[1]
