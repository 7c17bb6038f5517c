"""Writes down what a rank trains on, and kills it where its run says; knows no host."""

import json
import os
import signal
from pathlib import Path

from ted_stream.engine import PruningEngine
from ted_stream.methods import Chosen, Method
from ted_stream.pruning import Owned
from ted_stream.testing.runs import Run

__all__ = ["DEATH", "die", "watch"]

DEATH = "died"  # a file that says that a rank died as it was told to


def die(out: Path) -> None:
    """By SIGKILL."""
    (out / DEATH).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def watch(engine: PruningEngine, run: Run, out: Path, rank: int) -> None:
    """Record every batch of a rank, and let the rank die if it is the one that is to.

    Args:
        engine: of the run, before its first batch.
        run: says who dies, and when.
        out: folder of the run.
        rank: this one.
    """
    _record_steps(engine, out / f"steps{rank}.jsonl")
    if run.kill is None or run.kill["rank"] != rank:
        return
    event, epoch = run.kill["event"], run.kill["epoch"]
    if event == "after_backward":
        _die_in_step(engine, out, epoch, run.kill["batch"])
    elif event == "selected":
        _die_having_chosen(engine.method, out, epoch)
    elif event == "writing":
        _die_writing(out, epoch)


def _record_steps(engine: PruningEngine, path: Path) -> None:
    """A line for every batch that counts: epoch, batch in it, sample ids, measurements; killed runs leave theirs."""
    recorder, commit = engine.step, engine.step.commit

    def commit_and_record(step: int) -> None:
        commit(step)
        ids = recorder.ids.tolist()
        values = recorder.measurements().importance[-len(ids) :].tolist()
        with path.open("a") as file:
            file.write(json.dumps([engine.records[-1].epoch, step, ids, values]) + "\n")

    recorder.commit = commit_and_record


def _die_in_step(engine: PruningEngine, out: Path, epoch: int, batch: int) -> None:
    """With gradients, before they have changed the weights."""
    recorder, after_backward = engine.step, engine.step.after_backward

    def dying_after_backward() -> None:
        after_backward()
        done = recorder.measurements().steps.max(initial=-1) + 1  # of a resumed epoch's first part too
        if (engine.records[-1].epoch, done) == (epoch, batch):
            die(out)

    recorder.after_backward = dying_after_backward


def _die_having_chosen(method: Method, out: Path, epoch: int) -> None:
    """The epoch's samples are chosen, and nobody knows."""
    choose = type(method).choose

    def dying_choose(self: Method, owned: Owned, now: int, k: int | None) -> Chosen:
        chosen = choose(self, owned, now, k)
        if now == epoch:
            die(out)
        return chosen

    type(method).choose = dying_choose  # pyright: ignore[reportAttributeAccessIssue]


def _die_writing(out: Path, epoch: int) -> None:
    """Half of the epoch's skip-list is on the disk."""
    flush = os.fsync

    def dying_flush(file: int) -> None:
        if f"/skip_lists/.ep{epoch:04d}" in os.readlink(f"/proc/self/fd/{file}"):
            os.ftruncate(file, os.fstat(file).st_size // 2)
            die(out)
        flush(file)

    os.fsync = dying_flush
