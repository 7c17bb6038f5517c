"""Any number of jobs may start on a node at the same moment, and nothing that a killed one left stops the next."""

import fcntl
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest

from ted_stream import PrunedStreamingDataset
from ted_stream.reading import node_jobs

SCRIPT = Path(__file__).with_name("jobs_on_a_node.py")


@pytest.fixture(scope="module")
def outcomes(launch: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("jobs")
    launch(SCRIPT, folder, timeout=600)
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize(
    "trial",
    [
        "start_together",
        "ranks_start_together",
        "killed_with_all_that_cleans_up",
        "one_local_folder",
        "the_living_keep_what_they_have",
    ],
)
def test_jobs(outcomes: dict[str, str], trial: str) -> None:
    assert outcomes[trial] == "right", outcomes[trial]


@pytest.fixture
def other_jobs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_jobs, "_SHARED_MEMORY", tmp_path)


def is_free(path: Path) -> bool:
    """Whether nobody holds a file's lock."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@pytest.mark.usefixtures("other_jobs_apart")
def test_numbers_are_drawn_and_removed_by_one_process_at_a_time(
    make_mds: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(node_jobs, name)

        def call(*arguments: Any) -> Any:
            assert not is_free(node_jobs._folder() / "lock")
            called.append(name)
            result = real(*arguments)
            return list(result) if isinstance(result, Iterator) else result

        return call

    for name in ("_sweep", "_claim"):
        monkeypatch.setattr(node_jobs, name, watched(name))
    dataset = PrunedStreamingDataset(local=make_mds(20), batch_size=4)
    assert called == ["_sweep", "_claim"]
    path = node_jobs._folder() / str(dataset._shm_prefix_int)
    assert not is_free(path), "or another job would take it for one that has ended"
    del dataset
    assert is_free(path)


def test_a_number_that_is_taken_is_drawn_again(make_mds: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_mds(20)
    first = PrunedStreamingDataset(local=data, batch_size=4)
    list(first)  # whose folder may be used again
    taken = first._shm_prefix_int - node_jobs._FIRST
    drawn = iter([taken, taken, 12345])
    monkeypatch.setattr(node_jobs.secrets, "randbelow", lambda _: next(drawn))
    second = PrunedStreamingDataset(local=data, batch_size=4)
    assert second._shm_prefix_int == node_jobs._FIRST + 12345


@pytest.mark.usefixtures("other_jobs_apart")
def test_a_process_that_is_forked_meanwhile_holds_nobody_up() -> None:
    """It has the descriptor of the lock, too, for as long as it lives."""
    waiting, go = os.pipe()
    with node_jobs._one_at_a_time():
        pid = os.fork()
        if not pid:
            os.close(go)
            os.read(waiting, 1)
            os._exit(0)
    try:
        assert is_free(node_jobs._folder() / "lock")
    finally:
        os.close(go)
        os.waitpid(pid, 0)
        os.close(waiting)


@pytest.mark.usefixtures("other_jobs_apart")
def test_who_is_sent_a_dataset_uses_its_number(make_mds: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PrunedStreamingDataset(local=make_mds(20), batch_size=4)
    sent = pickle.dumps(dataset)
    with monkeypatch.context() as elsewhere:  # as in a process that has none
        elsewhere.setattr(node_jobs, "_held", {})
        elsewhere.setattr(node_jobs, "_uses", WeakValueDictionary())
        copy = pickle.loads(sent)
        assert [*node_jobs._held] == [dataset._shm_prefix_int]
        del copy
        assert not node_jobs._held
