"""Runs of a sweep, several at a time in processes that share the device."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...training.settings import ConfigError
from .results import RESULTS_FILE, read_outcomes, write_outcomes
from .run import Outcome, check, dataset_of, perform
from .sweep import Run, Sweep, runs_of

__all__ = ["execute"]

DATA = "data"


def execute(
    sweep: Sweep,
    out: Path,
    *,
    processes: int,
    planned: Callable[[int], None] = lambda _: None,
    finished: Callable[[Run, Outcome | Exception], None] = lambda *_: None,
) -> tuple[list[Outcome], list[tuple[Run, Exception]]]:
    """Do the runs that have no result yet.

    Args:
        sweep: what to do.
        out: folder of the results and of the datasets that are made.
        processes: runs at a time; they share the device and the processor's cores.
        planned: told how many runs are left to do.
        finished: told of every run as it ends.

    Raises:
        ConfigError: for an arm that cannot be run as it is given, or another sweep in the folder.

    Returns:
        The results of all runs of the sweep, those of before included; and what went wrong with others.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".sweep.lock", timeout=0):
            return _execute(sweep, out, processes=processes, planned=planned, finished=finished)
    except Timeout as error:
        raise ConfigError(f"another sweep is at work in {out}; wait for it, or name another folder.") from error


def _execute(
    sweep: Sweep,
    out: Path,
    *,
    processes: int,
    planned: Callable[[int], None],
    finished: Callable[[Run, Outcome | Exception], None],
) -> tuple[list[Outcome], list[tuple[Run, Exception]]]:
    file = out / RESULTS_FILE
    known = {outcome.key: outcome for outcome in read_outcomes(file)}
    runs = list(runs_of(sweep))
    left = [run for run in runs if run.key not in known]
    for run in left:
        if run.seed == 0 and run.regime == runs[0].regime:  # the others differ in their data alone
            check(run, Path(run.source))
    planned(len(left))
    failed: list[tuple[Run, Exception]] = []
    threads = max(1, (os.cpu_count() or 1) // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(threads,)) as pool:
        pending: dict[Future[Outcome], Run] = {}
        for run in [*left, None]:
            # Runs are handed out as others end, so that each can begin from what was found before.
            while pending and (run is None or len(pending) >= processes):
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    ended = pending.pop(future)
                    try:
                        outcome = future.result()
                    except Exception as error:
                        failed.append((ended, error))
                        finished(ended, error)
                        continue
                    known[outcome.key] = outcome
                    write_outcomes(file, known.values())
                    finished(ended, outcome)
            if run is None:
                break
            try:
                pending[pool.submit(_perform, run, out / DATA, _guess(run, known.values()))] = run
            except BrokenExecutor as error:  # one of its processes was killed, which ends all
                failed.append((run, error))
                finished(run, error)
    return _in_order(runs, known), failed


def _begin(threads: int) -> None:
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()

    from ted_stream.cli.show import quiet

    torch.set_num_threads(min(threads, torch.get_num_threads()))  # no more than OMP_NUM_THREADS
    quiet()


def _end_with_parent() -> None:
    """A process of the pool waits for work for ever where the one that gives it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _perform(run: Run, data: Path, guess: float | None) -> Outcome:
    gc.collect()  # the images of the run before
    return perform(run, dataset_of(run, data), guess=guess)


def _guess(run: Run, known: Any) -> float | None:
    """The prune ratio that was found for the first seed, whichever ended when."""
    of_arm = [one for one in known if one.arm == run.arm and one.seed < run.seed]
    same = [one for one in of_arm if (one.regime, one.epochs, one.saving) == run.group]
    return min(same, key=lambda one: one.seed).prune_ratio if same else None


def _in_order(runs: Sequence[Run], known: dict[str, Outcome]) -> list[Outcome]:
    named = ((run, known[run.key]) for run in runs if run.key in known)
    return [replace(outcome, regime=run.regime, arm=run.arm) for run, outcome in named]
