"""Tests that hang leave nothing behind, and cost what they are alone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sleepers import Sleeper

from ted_stream.methods import RandomPruning
from ted_stream.testing.runs import Run, described, load_result, start_runs


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        pytest.param("composer", 2, marks=[pytest.mark.composer, pytest.mark.long]),
        pytest.param("torch", 2, marks=pytest.mark.long),
        ("none", 1),
    ],
)
def test_nothing_is_left_of_what_ends_badly(
    launcher: str, ranks: int, launch: Callable[..., None], tmp_path: Path
) -> None:
    """Not even what has a session of its own, as torchrun's ranks have."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "pathlib.Path(sys.argv[1], f'pid{os.getpid()}').write_text(str(child.pid))\n"
        "os._exit(3)\n"
    )
    with pytest.raises(AssertionError, match="exit status"):
        launch(script, tmp_path, ranks=ranks, launcher=launcher)
    pids = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    assert pids
    end = time.monotonic() + 30  # killed ones are gone once they have been waited for
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


@pytest.mark.long
def test_a_run_that_hangs_costs_itself_alone(tmp_path: Path) -> None:
    """And none of its processes is left."""
    names = ("before", "hangs", "after")
    methods = (RandomPruning(0.5), Sleeper(0.5, pids=str(tmp_path / "pids")), RandomPruning(0.5))
    common: dict[str, Any] = {"host": "loop", "epochs": 2, "num_samples": 16, "ranks": 2}
    pairs = zip(names, methods, strict=True)
    runs = [Run(**{"name": name, **common, **described(method)}) for name, method in pairs]
    start_runs(runs, tmp_path, timeout=300, run_timeout=20)
    with pytest.raises(AssertionError, match="was given up after 20 s"):
        load_result(tmp_path, "hangs")
    for name in ("before", "after"):
        assert load_result(tmp_path, name)["records"]
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 4
    assert not [pid for pid in pids if is_alive(pid)]
