"""Small training runs in every host, killed ones too: how they are described, started and loaded.

This module knows no host; :mod:`ted_stream.testing.contract_process` is what is started.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ted_stream.methods import Method
from ted_stream.testing.processes import run_to_the_end

__all__ = [
    "DEATHS_IN_EVERY_HOST",
    "HOSTS",
    "Run",
    "described",
    "installed_hosts",
    "load_result",
    "sample_order",
    "start_runs",
    "steps_of",
]

# What each host needs beside torch. The first that is installed is what the others are compared with.
HOSTS: dict[str, tuple[str, ...]] = {
    "composer": ("composer",),
    "loop": (),
    "huggingface": ("transformers", "accelerate"),
}
_IN_COMPOSER_ALONE = ("microbatch_size", "replication", "start_from", "stop_after")
DEATHS_IN_EVERY_HOST = ("after_backward", "selected", "writing")  # events at which any run can be killed


def installed_hosts() -> tuple[str, ...]:
    """Those of :data:`HOSTS` whose packages can be imported."""
    return tuple(host for host, packages in HOSTS.items() if all(find_spec(package) for package in packages))


@dataclass(kw_only=True)
class Run:
    """One run, or one attempt at a run that is killed and started again.

    Args:
        name: of the folder that the run's results go to.
        method: repr of the method.
        module: where the method's class is.
        host: what trains: Composer's Trainer, a plain loop with a Pruner, or Hugging Face's Trainer with PruningMixin.
        data: folder of a streaming dataset of samples {id, x, y}, x of 6 features and y of 3 classes; ``None``: as many
            such samples in memory.
        num_samples: of those in memory.
        ranks: how many processes share it.
        global_batch_size: samples per step over all ranks.
        microbatch_size: of the device; ``None``: the whole batch. Composer alone.
        epochs: of the whole run.
        parallelism: ``ddp``; FSDP2 with ``full`` checkpoints, in Composer and the loop; or with ``sharded`` ones, in
            Composer.
        workers: persistent DataLoader workers per rank.
        augment: whether noise is added to x where samples are read, which is seeded sample by sample.
        replication: of the streaming dataset: so many ranks in a row train on the same samples. Composer alone.
        dropout: of the model, so that generators matter.
        double: whether the model is float64.
        save_interval: between checkpoints, in batches (``2ba``) or epochs (``1ep``), which the run resumes from if
            there are any; ``None``: no checkpoints.
        start_from: another run, whose folder is copied. Composer alone.
        stop_after: batches after which the run ends of itself. Composer alone.
        kill: {"rank", "event", "epoch", "batch"} at which that rank dies: "after_backward" (in the middle of a step),
            "selected" (the epoch's samples are chosen), "writing" (half of the list is on the disk); the latter two
            without a batch. In Composer also at its own events.

    Raises:
        ValueError: for a host that is not known, or that cannot do what is asked.
    """

    name: str
    method: str
    module: str = "ted_stream"
    host: str = "composer"
    data: str | None = None
    num_samples: int = 61
    ranks: int = 2
    global_batch_size: int = 8
    microbatch_size: int | None = None
    epochs: int = 5
    parallelism: str = "ddp"
    workers: int = 0
    augment: bool = False
    replication: int | None = None
    dropout: float = 0.0
    double: bool = False
    save_interval: str | None = None
    start_from: str | None = None
    stop_after: int | None = None
    kill: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.host not in HOSTS:
            raise ValueError(f"host is {self.host!r}, but must be one of {', '.join(HOSTS)}.")
        if self.host == "composer":
            return
        defaults = {field.name: field.default for field in fields(self)}
        beyond = [name for name in _IN_COMPOSER_ALONE if getattr(self, name) != defaults[name]]
        if self.parallelism not in ("ddp", "full" if self.host == "loop" else "ddp"):
            beyond.append("parallelism")
        if self.kill is not None and self.kill["event"] not in DEATHS_IN_EVERY_HOST:
            beyond.append("kill")
        if beyond:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in beyond)
            raise ValueError(f"Runs in {self.host} have no {values}. Leave it out, or take host='composer'.")


def described(method: Method) -> dict[str, str]:
    """How a :class:`Run` names a method, whose class must be importable."""
    return {"method": repr(method), "module": type(method).__module__}


def start_runs(runs: Sequence[Run], out: Path, *, timeout: float = 600, run_timeout: float = 120) -> None:
    """Start a process that trains the runs one after the other; nothing is left of it in the end.

    A run that fails, or hangs, does not keep those after it from running: see :func:`load_result`.

    Args:
        runs: at least one.
        out: an empty folder for their results.
        timeout: seconds, for all of them.
        run_timeout: seconds, for each; then it has failed.

    Raises:
        AssertionError: if it does not come to its end, with what it printed.
    """
    (out / "runs.json").write_text(json.dumps([asdict(run) for run in runs]))
    command = [sys.executable, "-m", "ted_stream.testing.contract_process", str(out), str(run_timeout)]
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
