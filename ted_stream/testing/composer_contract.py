"""Trains the runs that a JSON file describes, in Composer.

The ranks of every run are forked from a process that has imported everything, so that many runs, killed ones too, take
seconds. A run that is killed dies by SIGKILL on one rank, and its other ranks with it, as a launcher would have it.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader, Dataset

from ted_stream.extras import optional_imports
from ted_stream.methods import Chosen, Method
from ted_stream.pruning import Owned
from ted_stream.reading import PrunedStreamingDataset
from ted_stream.sampler import PrunedSampler
from ted_stream.testing.runs import Run
from ted_stream.trainers.composer import DataPruning

with optional_imports():
    from composer import Callback, Event, State, Trainer
    from composer.models import ComposerClassifier
    from composer.optim import CosineAnnealingScheduler
    from composer.utils import dist
    from composer.utils.parallelism import FSDP2Config

__all__ = ["main"]


_DEATH = "died"  # a file that says that a rank died as it was told to


def die(out: Path) -> None:
    """By SIGKILL."""
    (out / _DEATH).touch()
    os.kill(os.getpid(), signal.SIGKILL)


class Die(Callback):
    """In the middle of a step."""

    def __init__(self, out: Path, rank: int, event: str, epoch: int, batch: int) -> None:
        self.out, self.rank, self.event, self.epoch, self.batch = out, rank, Event(event), epoch, batch

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        """Die if it is time."""
        here = (state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value)
        if event == self.event and here == (self.epoch, self.batch) and dist.get_global_rank() == self.rank:
            die(self.out)


def die_at_boundary(method: Method, out: Path, rank: int, event: str, epoch: int) -> None:
    """Die in the making of an epoch's skip-list."""
    if int(os.environ["RANK"]) != rank:
        return
    if event == "selected":
        choose = type(method).choose

        def dying_choose(self: Method, owned: Owned, now: int, k: int | None) -> Chosen:
            chosen = choose(self, owned, now, k)
            if now == epoch:
                die(out)
            return chosen

        type(method).choose = dying_choose  # pyright: ignore[reportAttributeAccessIssue]
    else:
        flush = os.fsync

        def dying_flush(file: int) -> None:
            if f"/skip_lists/.ep{epoch:04d}" in os.readlink(f"/proc/self/fd/{file}"):
                os.ftruncate(file, os.fstat(file).st_size // 2)
                die(out)
            flush(file)

        os.fsync = dying_flush


class Stop(Callback):
    """End the run in the middle of an epoch, once its last batch is in a checkpoint."""

    def __init__(self, after: int) -> None:
        self.after = after

    def batch_start(self, state: State, logger: Any) -> None:
        if state.timestamp.batch.value == self.after:
            raise KeyboardInterrupt


class Steps(Callback):
    """A line for every batch of this rank: epoch, batch in it, sample ids, measurements; killed runs leave theirs."""

    def __init__(self, pruning: DataPruning, path: Path) -> None:
        self.pruning, self.path = pruning, path

    def batch_end(self, state: State, logger: Any) -> None:
        """Write the line."""
        step = self.pruning.engine.step
        ids = step.ids.tolist()
        values = step.measurements().importance[-len(ids) :].tolist()
        with self.path.open("a") as file:
            file.write(
                json.dumps([state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value - 1, ids, values]) + "\n"
            )


class InMemory(Dataset):
    """(x, y) samples around three centres."""

    def __init__(self, num_samples: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = torch.randint(3, (num_samples,), generator=generator)
        centres = torch.randn(3, 6, generator=generator)
        self.x = (centres[self.y] + torch.randn(num_samples, 6, generator=generator)).to(dtype)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[at], self.y[at]


class Streamed(PrunedStreamingDataset):
    """(x, y) samples from the shards of a folder."""

    double = False

    def __getitem__(self, at: Any) -> Any:
        """The sample, without what it is called."""
        sample = super().__getitem__(at)
        return sample["x"].astype(np.float64) if self.double else sample["x"], sample["y"]


def make_model(run: Run) -> ComposerClassifier:
    """The same weights in every run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(run.dropout), nn.Linear(16, 3))
    for layer in (model[0], model[3]):
        layer._fsdp_wrap = True  # pyright: ignore[reportArgumentType]
    return ComposerClassifier(model.double() if run.double else model, num_classes=3)


def make_loader(run: Run) -> DataLoader:
    """Of the run's data, on this rank."""
    batch_size = run.global_batch_size * (run.replication or 1) // run.ranks
    sampler = None
    if run.data is None:
        dataset: Any = InMemory(run.num_samples, torch.float64 if run.double else torch.float32)
        sampler = PrunedSampler(dataset, seed=3)
    else:
        dataset = Streamed(local=run.data, shuffle=True, batch_size=batch_size, replication=run.replication)
        dataset.double = run.double
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=run.workers,
        persistent_workers=run.workers > 0,
    )


def train(run: Run, out: Path) -> None:
    """Train, and write down what came of it."""
    rank = dist.get_global_rank()
    model = make_model(run)
    method = eval(run.method, dict(vars(resolve_name(run.module))))
    pruning = DataPruning(method, folder=str(out / "run"))
    callbacks: list[Callback] = [Steps(pruning, out / f"steps{rank}.jsonl")]
    if run.kill and run.kill["event"] in ("selected", "writing"):
        die_at_boundary(method, out, **run.kill)
    elif run.kill:
        callbacks.append(Die(out, **run.kill))
    if run.stop_after:
        callbacks.append(Stop(run.stop_after))
    fsdp = None
    if run.parallelism != "ddp":
        fsdp = {"fsdp": FSDP2Config(state_dict_type=run.parallelism, mixed_precision="FULL")}
    trainer = Trainer(
        model=model,
        train_dataloader=make_loader(run),
        max_duration=f"{run.epochs}ep",
        optimizers=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        schedulers=CosineAnnealingScheduler(),
        algorithms=[pruning],
        callbacks=callbacks,
        parallelism_config=fsdp,
        device_train_microbatch_size=run.microbatch_size,
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
    scores = pruning.engine.scores()
    trainer.close()
    records = [asdict(record) for record in pruning.records]
    for record in records:
        del record["boundary_seconds"]
    result = {
        "weights": {name: np.asarray(tensor) for name, tensor in weights.items()},
        "scores": scores,
        "records": records,
    }
    torch.save(result, out / f"rank{rank}.pt")


def fork_rank(run: Run, rank: int, out: Path, store: Path) -> int:
    """Train one rank of the run in a child process; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        world = {"WORLD_SIZE": run.ranks, "LOCAL_WORLD_SIZE": run.ranks, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in world.items()}, NODE_RANK="0")
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=run.ranks)
        train(run, out)
        status = 0
    except BaseException:
        (out / f"error{rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def train_ranks(run: Run, out: Path, store: Path) -> None:
    """Train all ranks of the run. One that ends badly takes the others with it: they would wait for it.

    What went wrong is left in files ``error….txt``; what a death brought about that was asked for is none of it.
    """
    (out / _DEATH).unlink(missing_ok=True)
    running = {fork_rank(run, rank, out, store): rank for rank in range(run.ranks)}
    codes: dict[int, int] = {}
    while running:
        pid, status = os.waitpid(-1, 0)
        codes[running.pop(pid)] = code = os.waitstatus_to_exitcode(status)
        if code:
            for other in running:
                os.kill(other, signal.SIGKILL)
    died = (out / _DEATH).exists()
    if died:
        for path in out.glob("error*.txt"):
            path.unlink()
    if died != (run.kill is not None) or (any(codes.values()) and not died):
        (out / "error.txt").write_text(f"{run} ended with these exit statuses of its ranks: {codes}.")


def main() -> None:
    """One run after the other."""
    out = Path(sys.argv[1])
    for number, description in enumerate(json.loads((out / "runs.json").read_text())):
        run = Run(**description)
        folder = out / run.name
        if run.start_from:
            shutil.copytree(out / run.start_from, folder, symlinks=True)
        folder.mkdir(exist_ok=True)
        train_ranks(run, folder, folder / f"store{number}")


if __name__ == "__main__":
    main()
