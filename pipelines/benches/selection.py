"""Time and memory of the distributed selection of an epoch's samples, beside `numpy.argpartition` in one process."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from ted_stream.pruning import HighestScores, TorchDistributed, select

__all__ = ["Row", "bench_selection"]

KEEP_RATIO = 0.3
_CHUNK = 1 << 20  # scores that are made at a time
_HEAD_START = 0.02  # seconds for every process to be told when to start


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run in one process.

    Args:
        seconds: from start to end.
        added: bytes of the peak memory above what the process held before; nan where the kernel does not tell.
        kept: how many scores were kept.
        lowest: of the scores that were kept.
        highest_dropped: of the others.
    """

    seconds: float
    added: float
    kept: int
    lowest: float
    highest_dropped: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one number of samples.

    Args:
        samples: N.
        ranks: W.
        selection: seconds of every repeat, the slowest rank's.
        argpartition: seconds of every repeat; empty where its memory was not to be had.
        selection_bytes: peak memory beside the scores per owned sample, of the rank with the most.
        argpartition_bytes: the same of the one process with all samples.
    """

    samples: int
    ranks: int
    selection: list[float]
    argpartition: list[float]
    selection_bytes: float
    argpartition_bytes: float

    @property
    def ratio(self) -> float:
        """Median over the repeats of the selection's seconds per second of the argpartition beside it."""
        pairs = zip(self.selection, self.argpartition, strict=True)
        return median(ours / theirs for ours, theirs in pairs) if self.argpartition else float("nan")


def bench_selection(samples: int, *, ranks: int = 2, repeats: int = 11, seed: int = 0) -> Row:
    """Select 30 % of N seeded lognormal scores with ``ranks`` processes, alternating with an argpartition of them all.

    The first run of each measures the memory and is not timed. Who does not run waits without taking processor time.

    Args:
        samples: N.
        ranks: processes that own N / W scores each and reduce over gloo.
        repeats: timed runs.
        seed: of the scores.

    Raises:
        RuntimeError: if the selection is not what argpartition says, or a process fails.
    """
    k = int(KEEP_RATIO * samples)
    with tempfile.TemporaryDirectory() as folder:
        group = f"file://{folder}/group"
        owners = [(_select, (rank, ranks, samples, k, seed, group)) for rank in range(ranks)]
        # 12 bytes per sample of its own, one of its making, and the scores of the ranks that wait.
        fits = not 18 * samples > _available_memory()
        beside = [(_argpartition, (ranks, samples, k, seed))] if fits else []
        with _processes([*owners, *beside]) as connections:
            pairs = [(_run(connections[:ranks]), _run(connections[ranks:])) for _ in range(repeats + 1)]
    for ours, theirs in pairs:
        _check(ours, theirs, k)
    first, timed = pairs[0], pairs[1:]
    return Row(
        samples=samples,
        ranks=ranks,
        selection=[max(run.seconds for run in ours) for ours, _ in timed],
        argpartition=[theirs[0].seconds for _, theirs in timed if theirs],
        selection_bytes=max(run.added for run in first[0]) / (samples / ranks),
        argpartition_bytes=first[1][0].added / samples if beside else float("nan"),
    )


def _check(ours: list[Run], theirs: list[Run], k: int) -> None:
    """Count and threshold agree: where scores are distinct at the threshold, only one set can."""
    kept = sum(run.kept for run in ours)
    lowest, highest_dropped = min(run.lowest for run in ours), max(run.highest_dropped for run in ours)
    if kept != k or lowest < highest_dropped or any(run.lowest != lowest for run in theirs):
        raise RuntimeError(
            f"The selection kept {kept} scores from {lowest} on and dropped up to {highest_dropped}, but it should "
            f"keep {k}" + "".join(f" from {run.lowest} on" for run in theirs) + ": it is wrong."
        )


# Processes ---------------------------------------------------------------------------------------------------------


@contextmanager
def _processes(works: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[list[Connection]]:
    """One process per function, called with its end of a connection; all are ready to run, and end with the block."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    try:
        for work, arguments in works:
            connection, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is seen here
            connections.append(connection)
            processes.append(process)
        for connection in connections:
            _receive(connection)
        yield connections
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _run(connections: list[Connection]) -> list[Run]:
    start = time.monotonic() + _HEAD_START
    for connection in connections:
        connection.send(start)
    return [_receive(connection) for connection in connections]


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError("A process of the benchmark has failed; its message is above.") from None


def _serve(connection: Connection, run: Callable[[float], Run]) -> None:
    connection.send("ready")
    while True:
        connection.send(run(connection.recv()))


def _select(connection: Connection, rank: int, ranks: int, samples: int, k: int, seed: int, group: str) -> None:
    """One rank."""
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=ranks)
    communicator = TorchDistributed()
    owned = _owned(rank, ranks, samples)
    scores = _scores(owned, seed, rank)

    def selected(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
        return select(HighestScores(), scores, k, first_id=owned.start, epoch=0, seed=seed, communicator=communicator)

    selected(scores[:1000], ranks)  # loads code and opens connections, which take memory once

    def run(start: float) -> Run:
        mask, seconds, added = _measured(lambda: selected(scores, k), start)
        lowest = float(np.min(scores, where=mask, initial=np.inf))
        highest_dropped = float(np.max(scores, where=~mask, initial=-np.inf))
        return Run(
            seconds=seconds,
            added=added,
            kept=np.count_nonzero(mask),
            lowest=lowest,
            highest_dropped=highest_dropped,
        )

    _serve(connection, run)


def _argpartition(connection: Connection, ranks: int, samples: int, k: int, seed: int) -> None:
    """The process with all scores."""
    scores = np.empty(samples, np.float32)
    for rank in range(ranks):
        owned = _owned(rank, ranks, samples)
        scores[owned.start : owned.stop] = _scores(owned, seed, rank)

    def run(start: float) -> Run:
        order, seconds, added = _measured(lambda: np.argpartition(scores, samples - k), start)
        lowest = float(scores[order[samples - k]])
        return Run(seconds=seconds, added=added, kept=k, lowest=lowest, highest_dropped=float("nan"))

    _serve(connection, run)


def _owned(rank: int, ranks: int, samples: int) -> range:
    return range(rank * samples // ranks, (rank + 1) * samples // ranks)


def _scores(owned: range, seed: int, rank: int) -> NDArray[np.float32]:
    rng = np.random.default_rng((seed, rank))
    scores = np.empty(len(owned), np.float32)
    for start in range(0, len(scores), _CHUNK):
        part = scores[start : start + _CHUNK]
        np.exp(rng.standard_normal(len(part), np.float32), out=part)
    return scores


# Memory ------------------------------------------------------------------------------------------------------------


def _measured(work: Callable[[], NDArray[Any]], start: float) -> tuple[NDArray[Any], float, float]:
    """What a function returns, its seconds from a moment to come, and the bytes that its peak added.

    All processes start at one moment, awake: leaving a barrier, one may be milliseconds behind another.
    """
    before = _reset_peak_memory()
    while time.monotonic() < start:
        pass
    result = work()
    seconds = time.monotonic() - start
    return result, seconds, _peak_memory() - before


def _reset_peak_memory() -> float:
    """Let the kernel's high-water mark of this process start anew; nan where it does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _peak_memory()


def _peak_memory() -> float:
    return _kibibytes("/proc/self/status", "VmHWM")


def _available_memory() -> float:
    return _kibibytes("/proc/meminfo", "MemAvailable")


def _kibibytes(file: str, name: str) -> float:
    """A line of a file of the kernel's, in bytes; nan where the kernel is another."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return float("nan")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(name + ":")), float("nan"))
