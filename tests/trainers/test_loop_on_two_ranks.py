"""The plain loop on two gloo ranks, by torch alone: DDP, FSDP2, and a SIGKILL."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_runs import (
    EPOCHS,
    GLOBAL_BATCH_SIZE,
    METHODS,
    NUM_SAMPLES,
    SIZES,
    assert_kept_as_by_one_process,
    make_loader,
    starts_by_sizes,
    train,
)

from ted_stream import read_skip_list

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("loop_runs.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_mds: Callable[..., str], launch: Callable[..., None]) -> Path:
    out = tmp_path_factory.mktemp("loop")
    launch(SCRIPT, out, make_mds(NUM_SAMPLES), ranks=2, launcher="torch")
    return out


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_ranks_agree(out: Path) -> None:
    first, second = results(out)
    assert first == second


@pytest.mark.parametrize("name", METHODS)
def test_ddp_keeps_what_one_process_keeps(name: str, out: Path, tmp_path: Path) -> None:
    expected = train(METHODS[name], str(tmp_path), dropout=0.0)
    found = results(out)[0][f"ddp-{name}"]
    assert_kept_as_by_one_process(found, expected)


@pytest.mark.parametrize("name", ["ted", "importance"])
def test_fsdp_makes_what_ddp_makes(name: str, out: Path) -> None:
    runs = results(out)[0]
    found, expected = runs[f"fsdp-{name}"], runs[f"ddp-{name}"]
    for what in ("digests", "kept", "forwarded"):
        assert found[what] == expected[what]
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-6)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-9)


def test_streaming(out: Path, make_mds: Callable[..., str], tmp_path: Path) -> None:
    found = results(out)[0]["ddp-streaming"]
    assert min(found["kept"]) < NUM_SAMPLES
    assert [forwarded - kept for forwarded, kept in zip(found["forwarded"], found["kept"], strict=True)] == [
        kept % 2 for kept in found["kept"]
    ]
    one = train(METHODS["ted"], str(tmp_path), loader=make_loader(make_mds(NUM_SAMPLES)), dropout=0.0)
    assert found["digests"][0] == one["digests"][0]


def test_a_schedule_by_sizes(out: Path) -> None:
    found = results(out)[0]["ddp-sizes"]
    lists = [read_skip_list(path) for path in sorted((out / "ddp-sizes" / "skip_lists").iterdir())]
    known = [int(SIZES[skip_list.kept_ids()].sum()) for skip_list in lists]
    full = -(-NUM_SAMPLES // GLOBAL_BATCH_SIZE)
    starts = starts_by_sizes(known, [count * float(SIZES.mean()) for count in found["kept"]], EPOCHS * full)
    expected: list[float] = []
    for epoch, forwarded in enumerate(found["forwarded"]):
        batches = -(-forwarded // GLOBAL_BATCH_SIZE)
        expected += np.linspace(starts[epoch], starts[epoch + 1], batches + 1)[1:].tolist()
    assert found["positions"] == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    out = tmp_path_factory.mktemp("lived")
    launch(SCRIPT, out, "lived", 0, ranks=2, launcher="torch")
    return out


@pytest.mark.parametrize("die_at", [4, 17])
def test_a_killed_run_goes_on_to_the_bit(die_at: int, lived: Path, launch: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit status"):
        launch(SCRIPT, tmp_path, "killed", die_at, ranks=2, launcher="torch")
    launch(SCRIPT, tmp_path, "killed", 0, ranks=2, launcher="torch")
    for rank in range(2):
        found = json.loads((tmp_path / f"killed-rank{rank}.json").read_text())
        assert found == json.loads((lived / f"lived-rank{rank}.json").read_text())
