"""Runs described in a JSON file, on the ranks that this script is launched on; used by the tests of this folder.

Every run is forked from a rank that has imported everything, so that many runs, killed ones too, take seconds. A run
that is killed dies by SIGKILL on one rank, and its other ranks with it, as a launcher or a scheduler would have it.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, Event, State, Trainer
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from small_run import TupleDataset
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader

from ted_stream import TED, SkipList


@dataclass(kw_only=True)
class Run:
    """One run, or one attempt at a run that is killed and started again.

    Args:
        name: of the folder that the run's results go to.
        data: the dataset's folder.
        ranks: how many of the launched ranks take part.
        global_batch_size: samples per step over all ranks.
        epochs: max_duration.
        parallelism: ``ddp``, or FSDP2 with ``full`` or ``sharded`` checkpoints.
        workers: persistent DataLoader workers per rank.
        replication: of the dataset: so many ranks in a row train on the same samples.
        dropout: of the model, so that generators matter.
        double: whether the model is float64.
        save_interval: between checkpoints, which the run resumes from if there are any; ``None``: no checkpoints.
        start_from: another run, whose folder is copied.
        stop_after: batches after which the run ends of itself.
        kill: {"rank", "event", "epoch", "batch"} at which that rank dies. Besides Composer's events there are
            "selected" (before the epoch's list is built) and "writing" (with half of it on the disk).
        ted: arguments of TED.
    """

    name: str
    data: str
    ranks: int = 2
    global_batch_size: int = 8
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
    ted: dict[str, Any] | None = None


class Die(Callback):
    """SIGKILL, in the middle of a step."""

    def __init__(self, rank: int, event: str, epoch: int, batch: int) -> None:
        self.rank, self.event, self.epoch, self.batch = rank, Event(event), epoch, batch

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        here = (state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value)
        if event == self.event and here == (self.epoch, self.batch) and dist.get_global_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def die_at_boundary(rank: int, event: str, epoch: int) -> None:
    """Put a SIGKILL into the making of an epoch's skip-list."""
    if int(os.environ["RANK"]) != rank:
        return
    if event == "selected":
        build = SkipList.from_keep_bits

        def dying_build(*args: Any, **kwargs: Any) -> SkipList:
            if kwargs["epoch"] == epoch:
                os.kill(os.getpid(), signal.SIGKILL)
            return build(*args, **kwargs)

        SkipList.from_keep_bits = dying_build  # pyright: ignore[reportAttributeAccessIssue]
    else:
        flush = os.fsync

        def dying_flush(file: int) -> None:
            if f"/skip_lists/.ep{epoch:04d}" in os.readlink(f"/proc/self/fd/{file}"):
                os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            flush(file)

        os.fsync = dying_flush


class Stop(Callback):
    """End the run in the middle of an epoch, once its last batch is in a checkpoint."""

    def __init__(self, after: int) -> None:
        self.after = after

    def batch_start(self, state: State, logger: Any) -> None:
        if state.timestamp.batch.value == self.after:
            raise KeyboardInterrupt


class Order(Callback):
    """A line for every batch of this rank: epoch, batch in it, sample ids; a killed run leaves its lines behind."""

    def __init__(self, ted: TED, path: Path) -> None:
        self.ted, self.path = ted, path

    def batch_end(self, state: State, logger: Any) -> None:
        batch = state.timestamp.batch_in_epoch.value - 1
        with self.path.open("a") as file:
            file.write(json.dumps([state.timestamp.epoch.value, batch, self.ted._batch_ids.tolist()]) + "\n")


def make_model(run: Run) -> ComposerClassifier:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(run.dropout), nn.Linear(16, 3))
    for layer in (model[0], model[3]):
        layer._fsdp_wrap = True  # pyright: ignore[reportArgumentType]
    return ComposerClassifier(model.double() if run.double else model, num_classes=3)


class DoubleDataset(TupleDataset):
    def __getitem__(self, at: Any) -> Any:
        x, y = super().__getitem__(at)
        return x.astype(np.float64), y


def train(run: Run, out: Path) -> None:
    rank = dist.get_global_rank()
    model = make_model(run)
    dataset_class = DoubleDataset if run.double else TupleDataset
    batch_size = run.global_batch_size * (run.replication or 1) // run.ranks
    dataset = dataset_class(local=run.data, shuffle=True, batch_size=batch_size, replication=run.replication)
    ted = TED(**{"prune_ratio": 0.6, "folder": str(out / "run"), **(run.ted or {})})
    callbacks: list[Callback] = [Order(ted, out / f"order{rank}.jsonl")]
    if run.kill and run.kill["event"] in ("selected", "writing"):
        die_at_boundary(**run.kill)
    elif run.kill:
        callbacks.append(Die(**run.kill))
    if run.stop_after:
        callbacks.append(Stop(run.stop_after))
    fsdp = None
    if run.parallelism != "ddp":
        fsdp = {"fsdp": FSDP2Config(state_dict_type=run.parallelism, mixed_precision="FULL")}
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(
            dataset, batch_size=batch_size, num_workers=run.workers, persistent_workers=run.workers > 0
        ),
        max_duration=f"{run.epochs}ep",
        optimizers=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        schedulers=CosineAnnealingScheduler(),
        algorithms=[ted],
        callbacks=callbacks,
        parallelism_config=fsdp,
        device="cpu",
        seed=1,
        run_name="run",
        progress_bar=False,
        auto_log_hparams=False,
        save_folder=str(out / "checkpoints") if run.save_interval else None,
        save_interval=run.save_interval or "1ep",
        autoresume=run.save_interval is not None,
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        trainer.close()
        return
    weights = get_model_state_dict(trainer.state.model, options=StateDictOptions(full_state_dict=True))
    assert ted._store is not None
    scores = ted._store.gather()
    trainer.close()
    result = {
        "weights": {name: np.asarray(tensor) for name, tensor in weights.items()},
        "scores": scores,
        "records": [
            {
                name: getattr(record, name)
                for name in ("digest", "kept", "returning", "unmeasured", "forwarded", "non_finite")
            }
            for record in ted.records
        ],
    }
    torch.save(result, out / f"rank{rank}.pt")


def in_fork(run: Run, out: Path) -> int:
    """Train in a child process of its own process group; its exit status, negative for a signal."""
    died = out / "died"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            world = {"RANK": os.environ["RANK"], "WORLD_SIZE": run.ranks, "LOCAL_WORLD_SIZE": run.ranks}
            os.environ.update({name: str(value) for name, value in world.items()})
            store = f"file://{out}/store{len(list(out.glob('attempt*')))}"
            torch.distributed.init_process_group(
                "gloo", init_method=store, rank=int(os.environ["RANK"]), world_size=run.ranks
            )
            train(run, out)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if died.exists():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    if code:
        died.touch()  # whatever the cause, the other ranks must not wait for this one
    return code


def main() -> None:
    out = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    runs = [Run(**description) for description in json.loads((out / "runs.json").read_text())]
    for number, run in enumerate(runs):
        folder = out / run.name
        done = out / f"done{number}.rank"
        if rank < run.ranks:
            if rank == 0:
                if run.start_from:
                    shutil.copytree(out / run.start_from, folder, symlinks=True)
                (folder / "died").unlink(missing_ok=True)
                (folder / f"attempt{number}").mkdir(parents=True)
                (out / f"ready{number}").touch()
            while not (out / f"ready{number}").exists():
                time.sleep(0.01)
            code = in_fork(run, folder)
            if run.kill is None:
                assert code == 0, f"{run} ended with {code} on rank {rank}"
            elif rank == run.kill["rank"]:
                assert code == -signal.SIGKILL, f"{run} ended with {code} on rank {rank}"
        Path(f"{done}{rank}").touch()
        while len(list(out.glob(f"{done.name}*"))) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.01)


if __name__ == "__main__":
    main()
