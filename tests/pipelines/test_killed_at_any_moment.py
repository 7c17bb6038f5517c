"""Kills that nobody chose: within a checkpoint's write, between two, behind the last; crops and flips in workers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import outcome

SCRIPT = Path(__file__).with_name("killed_at_any_moment.py")
CASES = [f"{trainer}-{workers}" for trainer in ("composer", "loop") for workers in (0, 1, 4)]

pytestmark = [pytest.mark.composer, pytest.mark.long]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    launch(SCRIPT, folder, *CASES, timeout=1200)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_at_any_moment_ends_as_the_one_that_lived(case: str, out: Path) -> None:
    kills = json.loads((out / "outcomes.json").read_text())[case]
    assert kills in (3, 4, 5, 6), kills  # a fast machine ends before some
    lived, killed = out / case / "lived", out / case / "killed"
    assert outcome(killed) == outcome(lived)
    for name in ("manifest.parquet", "running_scores.parquet"):
        assert (killed / name).read_bytes() == (lived / name).read_bytes(), name
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (lived, killed)]
    assert names[0] == names[1]
