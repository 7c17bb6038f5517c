"""Trains the runs that a JSON file describes, each in its host.

The ranks of every run are forked from a process that has imported everything, so that many runs, killed ones too, take
seconds. A run that is killed dies by SIGKILL on one rank, and its other ranks with it, as a launcher would have it. One
that hangs is given up alone.
"""

import contextlib
import gc
import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from ted_stream.testing.contract_watch import DEATH
from ted_stream.testing.runs import Run

__all__ = ["main"]

Train = Callable[[Run, Path, int], None]  # of a run, its folder and this rank, in a process group; writes what came out


def _train_in(host: str) -> Train:
    """How a host trains; each is imported only where it is asked for, as it need not be installed."""
    if host == "composer":
        from ted_stream.testing.composer_contract import train
    elif host == "huggingface":
        from ted_stream.testing.huggingface_contract import train
    else:
        from ted_stream.testing.loop_contract import train
    return train


def _add(path: Path, error: str) -> None:
    """Beside those of earlier attempts at the run, which say more."""
    with path.open("a") as file:
        file.write(error)


def _fork_rank(train: Train, run: Run, rank: int, out: Path, store: Path) -> int:
    """Train one rank of the run in a child process; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)  # with the workers that it starts
        world = {"WORLD_SIZE": run.ranks, "LOCAL_WORLD_SIZE": run.ranks, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in world.items()}, NODE_RANK="0")
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=run.ranks)
        train(run, out, rank)
        status = 0
    except BaseException:
        _add(out / f"error{rank}.txt", traceback.format_exc())
    finally:
        os._exit(status)


def _train_ranks(train: Train, run: Run, out: Path, store: Path, timeout: float) -> None:
    """Train all ranks of the run. One that ends badly takes the others with it: they would wait for it.

    Those of a run that is not over after the timeout (seconds) are killed, with the workers that they started.

    What went wrong is left in files ``error….txt``; what a death brought about that was asked for is none of it.
    """
    (out / DEATH).unlink(missing_ok=True)
    before = set(out.glob("error*.txt"))
    running = {_fork_rank(train, run, rank, out, store): rank for rank in range(run.ranks)}
    groups, end = list(running), time.monotonic() + timeout
    codes: dict[int, int] = {}
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            if time.monotonic() > end:
                _add(out / "error.txt", f"{run} was given up after {timeout:g} s.\n")
                _kill(groups)
                end = math.inf
            time.sleep(0.005)
            continue
        codes[running.pop(pid)] = code = os.waitstatus_to_exitcode(status)
        if code:
            for other in running:
                os.kill(other, signal.SIGKILL)
    died = (out / DEATH).exists()
    if died:
        for path in set(out.glob("error*.txt")) - before:
            path.unlink()
    if died != (run.kill is not None) or (any(codes.values()) and not died):
        _add(out / "error.txt", f"{run} ended with these exit statuses of its ranks: {codes}.\n")


def _kill(groups: list[int]) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def main() -> None:
    """One run after the other."""
    out, timeout = Path(sys.argv[1]), float(sys.argv[2])
    runs = [Run(**description) for description in json.loads((out / "runs.json").read_text())]
    train_in = {host: _train_in(host) for host in {run.host for run in runs}}
    gc.freeze()  # what was imported: Trainers collect garbage, and would look through, and so copy, all of it
    for number, run in enumerate(runs):
        folder = out / run.name
        if run.start_from:
            shutil.copytree(out / run.start_from, folder, symlinks=True)
        folder.mkdir(exist_ok=True)
        _train_ranks(train_in[run.host], run, folder, folder / f"store{number}", timeout)


if __name__ == "__main__":
    main()
