"""Workers that are forked beside a process group start, or it is said which one does not, and why."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ted_stream.engine import forks

SCRIPT = Path(__file__).with_name("worker_starts.py")
before_python_3_12 = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="a child's lock is new, and no fork is watched"
)


@before_python_3_12
@pytest.mark.long
def test_nothing_of_an_exchange_is_at_work_when_a_worker_is_forked(launch: Callable[..., None], tmp_path: Path) -> None:
    launch(SCRIPT, "settled", tmp_path, ranks=2, launcher="torch")
    for rank in range(2):
        late = json.loads((tmp_path / f"late{rank}.json").read_text())
        assert late == [0] * 20


@before_python_3_12
@pytest.mark.long
def test_a_worker_that_never_starts_is_named(launch: Callable[..., None], tmp_path: Path) -> None:
    launch(SCRIPT, "stuck", tmp_path, ranks=2, launcher="torch")
    for rank in range(2):
        found = json.loads((tmp_path / f"stuck{rank}.json").read_text())
        (said,) = found["said"]
        assert said.startswith(f"DataLoader worker {found['pids'][1]} was forked from process {found['parent']} more")
        assert 'multiprocessing_context="forkserver" or take Python 3.12' in said


def test_a_worker_that_has_the_id_of_a_former_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Ids are given again: that a process of this id once started says nothing of this one."""
    watch = forks._ForkWatch()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        assert child.pid is not None
        begun = forks._begun(child.pid)
        assert begun is not None
        for started, is_named in ((begun, False), (begun - 1, True), (0, True)):
            watch._started[child.pid] = started
            caplog.clear()
            watch._look()
            assert [f"worker {child.pid} was forked" in record.getMessage() for record in caplog.records] == (
                [True] * is_named
            )
    finally:
        child.kill()
        child.join()
    assert forks._begun(child.pid) is None


@pytest.mark.long
@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_many_epochs_whose_workers_start_anew(
    context: str, make_mds: Callable[..., str], launch: Callable[..., None], tmp_path: Path
) -> None:
    launch(
        SCRIPT.with_name("many_iterators.py"),
        make_mds(64),
        tmp_path,
        100,
        context,
        ranks=2,
        launcher="torch",
        timeout=600,
        # A server finds what it is to import beforehand by this alone (python/cpython#117378).
        variables={"PYTHONPATH": str(SCRIPT.parent)},
    )
    assert [(tmp_path / f"epochs{rank}").read_text() for rank in range(2)] == ["100", "100"]
