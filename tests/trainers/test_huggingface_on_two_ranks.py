"""Hugging Face's Trainer on two gloo ranks, by torchrun and by accelerate: DDP, steps of several batches, a SIGKILL."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_runs import language_scores, train
from loop_runs import METHODS, NUM_SAMPLES, assert_kept_as_by_one_process

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("hf_runs.py")
# Accelerate calls the device of one CPU rank among several cpu:0, which torch knows no way to load a checkpoint to.
VARIABLES = {"ACCELERATE_TORCH_DEVICE": "cpu"}


@pytest.fixture(scope="module", params=["torch", "accelerate"])
def results(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_mds: Callable[..., str],
    launch: Callable[..., None],
) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("huggingface")
    launch(SCRIPT, out, make_mds(NUM_SAMPLES), ranks=2, launcher=request.param, variables=VARIABLES)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_ranks_agree(results: list[dict[str, Any]]) -> None:
    assert results[0] == results[1]


@pytest.mark.parametrize("name", METHODS)
def test_ddp_keeps_what_one_process_keeps(name: str, results: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = train(METHODS[name], str(tmp_path), dropout=0.0)
    found = results[0][name]
    assert_kept_as_by_one_process(found, expected)


def test_streaming_data_is_shared_out_once(results: list[dict[str, Any]]) -> None:
    found = results[0]["streaming"]
    assert found["forwarded"] == [kept + kept % 2 for kept in found["kept"]]
    assert min(found["kept"]) < NUM_SAMPLES


def test_accumulated_steps_are_those_of_large_batches(results: list[dict[str, Any]]) -> None:
    large, accumulated = results[0]["ted"], results[0]["accumulated"]
    assert accumulated["kept"] == large["kept"]
    assert accumulated["steps"] == large["steps"]
    assert accumulated["digests"][:2] == large["digests"][:2]


def test_scores_do_not_hang_on_ranks_or_steps(results: list[dict[str, Any]], tmp_path: Path) -> None:
    """Though the Trainer counts the targets of all ranks and batches of a step together."""
    assert results[0]["texts"] == pytest.approx(language_scores(str(tmp_path)), rel=1e-6)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    out = tmp_path_factory.mktemp("lived")
    launch(SCRIPT, out, "lived", 0, ranks=2, launcher="torch", variables=VARIABLES)
    return out


@pytest.mark.parametrize("die_at", [5, 19])
def test_a_killed_run_goes_on_to_the_bit(die_at: int, lived: Path, launch: Callable[..., None], tmp_path: Path) -> None:
    ranks = {"ranks": 2, "launcher": "torch", "variables": VARIABLES}
    with pytest.raises(AssertionError, match="exit status"):
        launch(SCRIPT, tmp_path, "killed", die_at, **ranks)
    launch(SCRIPT, tmp_path, "killed", 0, **ranks)
    for rank in range(2):
        found = json.loads((tmp_path / f"killed-rank{rank}.json").read_text())
        assert found == json.loads((lived / f"lived-rank{rank}.json").read_text())
