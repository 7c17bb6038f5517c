"""Many jobs on this node, forked from a process that has imported all: run by the tests, whose own has threads."""

import atexit
import json
import os
import pickle
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import streaming.base.dataset
import torch.distributed as dist
from streaming import MDSWriter, StreamingDataset
from streaming.base.shared import get_shm_prefix as stock_get_shm_prefix
from torch.utils.data import DataLoader

from ted_stream import PrunedStreamingDataset
from ted_stream.reading import node_jobs

NUM_SAMPLES = 60
JOBS, ROUNDS = 20, 3
Work = Callable[[], object]


def write(folder: Path, num_samples: int = NUM_SAMPLES) -> str:
    with MDSWriter(out=str(folder), columns={"id": "int"}, size_limit=400) as writer:
        for index in range(num_samples):
            writer.write({"id": index})
    return str(folder)


# A job ---------------------------------------------------------------------------------------------------------


def train(remote: str | None, local: str, *, test: str, workers: int = 0, epochs: int = 1) -> None:
    """What a job does: a dataset of ours and a stock one, each read in a loader."""
    ours = PrunedStreamingDataset(remote=remote, local=local, batch_size=4, shuffle=True)
    stock = StreamingDataset(local=test, batch_size=4)
    for _ in range(epochs):
        assert sorted(read(ours, workers)) == list(range(NUM_SAMPLES))
        assert read(stock, 0) == list(range(NUM_SAMPLES))


def train_on_a_rank(port: int, rank: int, remote: str, local: str, *, test: str) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo")
    ours = PrunedStreamingDataset(remote=remote, local=local, batch_size=4, shuffle=True)
    stock = StreamingDataset(local=test, batch_size=4)
    numbers = {ours._shm_prefix_int, stock._shm_prefix_int}
    assert len(numbers) == 2
    ids = read(ours, 0)
    assert len(ids) == NUM_SAMPLES // 2
    assert len(read(stock, 0)) == NUM_SAMPLES // 2
    Path(f"{local}.{rank}").write_text(json.dumps([sorted(numbers), ids]))


def read(dataset: StreamingDataset, workers: int) -> list[int]:
    batches = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list)
    return [int(sample["id"]) for batch in batches for sample in batch]


# Processes -----------------------------------------------------------------------------------------------------


class Jobs:
    """Processes that begin at the same moment, and what they print."""

    def __init__(self, *works: Work) -> None:
        ready, go = os.pipe()
        self.pids: list[int] = []
        for work in works:
            pid = os.fork()
            if not pid:
                os.close(go)
                os.read(ready, 1)  # nothing comes: all go on when it is closed
                code = 1
                try:
                    work()
                    code = 0
                except Exception:
                    traceback.print_exc()
                # What a process does at its end, but for taking a second to forget its modules.
                atexit._run_exitfuncs()
                os._exit(code)
            self.pids.append(pid)
        os.close(ready)
        os.close(go)

    def kill(self, within: float) -> None:
        """Kill each at a moment of its own."""
        for pid in self.pids:
            time.sleep(random.random() * within / len(self.pids))
            os.kill(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)

    def end(self, timeout: float = 120) -> None:
        """Wait for all, which are to end right."""
        deadline, codes = time.monotonic() + timeout, {}
        while len(codes) < len(self.pids) and time.monotonic() < deadline:
            for pid in set(self.pids) - set(codes):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        late = set(self.pids) - set(codes)
        for pid in late:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert not late, f"{len(late)} of {len(self.pids)} hang"
        assert not any(codes.values()), f"exit codes {sorted(codes.values())}"


def until(path: Path, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} in {timeout} s"
        time.sleep(0.01)


def refused(remote: str | None, local: str) -> str:
    """With what a second dataset is refused, or nothing."""
    try:
        PrunedStreamingDataset(remote=remote, local=local, batch_size=4)
    except ValueError as error:
        return str(error)
    return ""


def left_of(pids: list[int]) -> list[str]:
    """What there is of processes that have ended."""
    left = []
    with node_jobs._one_at_a_time():  # other tests' jobs claim and remove theirs
        for path in node_jobs._folder().iterdir():
            if path.name.isdigit() and json.loads(path.read_text())["pid"] in pids:
                left += [path.name, *(found.name for found in Path("/dev/shm").glob(f"{path.name}_*"))]
    return left


# What is tried -------------------------------------------------------------------------------------------------


def start_together(folder: Path) -> None:
    remote, test = write(folder / "remote"), write(folder / "test")
    pids = []
    for _ in range(ROUNDS):
        works = [lambda local=str(folder / f"local{job}"): train(remote, local, test=test) for job in range(JOBS)]
        killed = Jobs(*works[:8])  # over the local folders that the next ones have
        killed.kill(within=1)
        jobs = Jobs(*works)
        jobs.end()
        pids += killed.pids + jobs.pids
    assert left_of(pids) == []


def ranks_start_together(folder: Path) -> None:
    remote, test = write(folder / "remote"), write(folder / "test")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()

    def work(job: int, rank: int) -> Work:
        return lambda: train_on_a_rank(ports[job], rank, remote, str(folder / f"local{job}"), test=test)

    Jobs(*(work(job, rank) for job in range(4) for rank in range(2))).end()
    of_jobs = []
    for job in range(4):
        (numbers, first), (others, second) = (
            json.loads((folder / f"local{job}.{rank}").read_text()) for rank in range(2)
        )
        assert numbers == others, "the ranks of a job share what they have"
        assert sorted(first + second) == list(range(NUM_SAMPLES))
        of_jobs += numbers
    assert len(set(of_jobs)) == 8, "jobs share nothing"


def killed_with_all_that_cleans_up(folder: Path) -> None:
    remote, test = write(folder / "remote"), write(folder / "test")
    for workers in (None, 0, 2):
        local = str(folder / f"local{workers}")

        def work(local: str = local, workers: int | None = workers) -> None:
            dataset = PrunedStreamingDataset(remote=remote, local=local, batch_size=4)
            if workers is not None:
                next(iter(DataLoader(dataset, num_workers=workers)))  # and they outlive it for seconds
            # Python's process that removes what others leave does not outlive a container.
            os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)  # pyright: ignore
            os.kill(os.getpid(), signal.SIGKILL)

        job = Jobs(work)
        _, status = os.waitpid(job.pids[0], 0)
        assert os.WIFSIGNALED(status)
        assert left_of(job.pids)
        following = Jobs(lambda local=local, workers=workers: train(remote, local, test=test, workers=workers or 0))
        following.end()
        assert left_of(job.pids + following.pids) == []


def one_local_folder(folder: Path) -> None:
    remote = write(folder / "remote")
    local, ready, done = str(folder / "local"), folder / "ready", folder / "done"

    def live() -> None:
        dataset = PrunedStreamingDataset(remote=remote, local=local, batch_size=4)
        assert len(read(dataset, 2)) == NUM_SAMPLES
        pickle.loads(pickle.dumps(dataset))  # as a spawned worker has it, and ends
        ready.touch()
        until(done)
        assert len(read(dataset, 2)) == NUM_SAMPLES
        del dataset
        assert refused(remote, local) == "", "a dataset that is deleted has its folder no more"

    def second() -> None:
        until(ready)
        try:
            start = time.monotonic()
            message = refused(remote, local)
            assert message.startswith("Reused local directory"), message
            assert f"of process {job.pids[0]} is in use" in message
            assert time.monotonic() - start < 50
            assert refused(None, local) == "", "who downloads nothing may read beside it"
            assert refused(remote, local + "2") == ""
        finally:
            done.touch()

    job = Jobs(live)
    others = Jobs(second)
    others.end()
    job.end()


def the_living_keep_what_they_have(folder: Path) -> None:
    remote, test = write(folder / "remote"), write(folder / "test")
    done = folder / "done"

    def live(name: str) -> None:
        if name == "stock":
            streaming.base.dataset.get_shm_prefix = stock_get_shm_prefix  # pyright: ignore[reportPrivateImportUsage]
        kind = StreamingDataset if name == "stock" else PrunedStreamingDataset
        dataset = kind(remote=remote, local=str(folder / name), batch_size=4)
        assert (dataset._shm_prefix_int < 10**6) == (name == "stock")
        prefix = f"{dataset._shm_prefix_int:06}_"
        before = sorted(path.name for path in Path("/dev/shm").glob(f"{prefix}*"))
        assert len(before) >= 6
        (folder / f"{name} lives").touch()
        until(done)
        assert sorted(path.name for path in Path("/dev/shm").glob(f"{prefix}*")) == before
        assert sorted(read(dataset, 2)) == list(range(NUM_SAMPLES))

    jobs = Jobs(lambda: live("ours"), lambda: live("stock"))
    try:
        for name in ("ours", "stock"):
            until(folder / f"{name} lives")
        works = [lambda local=str(folder / f"local{job}"): train(remote, local, test=test) for job in range(3)]
        Jobs(*works).kill(within=0.5)
        Jobs(*works).end()
    finally:
        done.touch()
    jobs.end()


TRIALS = (
    start_together,
    ranks_start_together,
    killed_with_all_that_cleans_up,
    one_local_folder,
    the_living_keep_what_they_have,
)


def main() -> None:
    folder, only = Path(sys.argv[1]), sys.argv[2:]
    outcomes = {}
    for trial in TRIALS:
        if only and trial.__name__ not in only:
            continue
        start, outcome = time.monotonic(), "right"
        try:
            trial(folder / trial.__name__)
        except Exception:
            outcome = traceback.format_exc()
        outcomes[trial.__name__] = outcome
        print(trial.__name__, round(time.monotonic() - start, 1), outcome, flush=True)
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
