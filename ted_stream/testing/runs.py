"""Small training runs in Composer, killed ones too: how they are described, started and compared.

This module knows no trainer; :mod:`ted_stream.testing.composer_contract` is what is started.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ted_stream.methods import Method
from ted_stream.testing.processes import run_to_the_end

__all__ = ["Run", "described", "load_result", "sample_order", "start_runs", "steps_of"]


@dataclass(kw_only=True)
class Run:
    """One run, or one attempt at a run that is killed and started again.

    Args:
        name: of the folder that the run's results go to.
        method: repr of the method.
        module: where the method's class is.
        data: folder of a streaming dataset of samples {id, x, y}, x of 6 features and y of 3 classes; ``None``: as many
            such samples in memory.
        num_samples: of those in memory.
        ranks: how many processes share it.
        global_batch_size: samples per step over all ranks.
        microbatch_size: of the device; ``None``: the whole batch.
        epochs: max_duration.
        parallelism: ``ddp``, or FSDP2 with ``full`` or ``sharded`` checkpoints.
        workers: persistent DataLoader workers per rank.
        replication: of the streaming dataset: so many ranks in a row train on the same samples.
        dropout: of the model, so that generators matter.
        double: whether the model is float64.
        save_interval: between checkpoints, which the run resumes from if there are any; ``None``: no checkpoints.
        start_from: another run, whose folder is copied.
        stop_after: batches after which the run ends of itself.
        kill: {"rank", "event", "epoch", "batch"} at which that rank dies. Besides Composer's events there are
            "selected" (the epoch's samples are chosen) and "writing" (half of the list is on the disk).
    """

    name: str
    method: str
    module: str = "ted_stream"
    data: str | None = None
    num_samples: int = 61
    ranks: int = 2
    global_batch_size: int = 8
    microbatch_size: int | None = None
    epochs: int = 5
    parallelism: str = "ddp"
    workers: int = 0
    replication: int | None = None
    dropout: float = 0.0
    double: bool = False
    save_interval: str | None = None
    start_from: str | None = None
    stop_after: int | None = None
    kill: dict[str, Any] | None = None


def described(method: Method) -> dict[str, str]:
    """How a :class:`Run` names a method, whose class must be importable."""
    return {"method": repr(method), "module": type(method).__module__}


def start_runs(runs: Sequence[Run], out: Path, *, timeout: float = 600) -> None:
    """Start a process that trains the runs one after the other; nothing is left of it in the end.

    A run that fails does not keep those after it from running: see :func:`load_result`.

    Args:
        runs: at least one.
        out: an empty folder for their results.
        timeout: seconds, for all of them.

    Raises:
        AssertionError: if it does not come to its end, with what it printed.
    """
    (out / "runs.json").write_text(json.dumps([asdict(run) for run in runs]))
    command = [sys.executable, "-m", "ted_stream.testing.composer_contract", str(out)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    run_to_the_end(command, environment, timeout)


def load_result(out: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What a rank knew at the end of a run: ``weights``, ``scores``, ``records``.

    Raises:
        AssertionError: if the run did not come to its end, with the error.
    """
    errors = sorted((out / name).glob("error*.txt"))
    assert not errors, f"Run {name!r} failed.\n" + "\n".join(path.read_text() for path in errors)
    return torch.load(out / name / f"rank{rank}.pt", weights_only=False)


def sample_order(out: Path, name: str, rank: int) -> dict[tuple[int, int], list[int]]:
    """The sample ids of every (epoch, batch) of a rank; where two attempts trained a batch, they must agree."""
    return {at: ids for at, (ids, _) in steps_of(out, name, rank).items()}


def steps_of(out: Path, name: str, rank: int) -> dict[tuple[int, int], tuple[list[int], list[float]]]:
    """The sample ids and measurements of every (epoch, batch) of a rank; two attempts at a batch must agree."""
    steps: dict[tuple[int, int], tuple[list[int], list[float]]] = {}
    for line in (out / name / f"steps{rank}.jsonl").read_text().splitlines():
        epoch, batch, *found = json.loads(line)
        found = tuple(found)
        assert steps.setdefault((epoch, batch), found) == found, f"batch {batch} of epoch {epoch} trained differently"
    return steps
