"""A run through a plain PyTorch loop around `Pruner`; Composer is not needed, nor imported."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.amp.grad_scaler import GradScaler
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel

from ted_stream import Pruner
from ted_stream.engine import Ranks
from ted_stream.engine.generators import seed_generators
from ted_stream.files import join
from ted_stream.methods import Method
from ted_stream.pruning.batches import batch_size, map_tensors

from .checkpoints import (
    CHECKPOINTS,
    Frozen,
    frozen_names,
    load_checkpoint,
    newest_checkpoint,
    refuse_missing,
    save_checkpoint,
)
from .datasets import Loaders
from .durations import parse_duration
from .metrics_record import MetricsRecord
from .optimizers import build_optimizer, build_scheduler
from .results import Trained
from .settings import INTERVAL_UNITS, Settings, epochs, steps
from .sharding import shard
from .tasks import LanguageModelling, Task
from .text_batches import count_tokens, progress_of, token_factors
from .whole_epochs import WholeEpochs

__all__ = ["Host", "join_ranks"]

DTYPES = {"fp32": torch.float32, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}
# What is frozen is as the model was built.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def join_ranks() -> None:
    """Make the process group of the ranks that were launched, by torchrun or by Composer's launcher."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        has_gpu = torch.cuda.is_available()
        if has_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")


class Host:
    """A run that has not begun: nothing is written before `fit`.

    Args:
        settings: of the run.
        task: what is trained.
        loaders: of this rank.
        method: to prune or measure by; by default that of the settings, if they name one.
        after_epoch: called with the number of epochs so far, on every rank, after each epoch's checkpoint, and where a
            run goes on from the end of an epoch; its time is not counted as training.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        loaders: Loaders,
        *,
        method: Method | None = None,
        after_epoch: Callable[[int], None] | None = None,
    ) -> None:
        self.settings, self.task, self.loaders = settings, task, loaders
        self.method = settings.pruning.value if method is None else method
        self.after_epoch = after_epoch
        self.ranks = Ranks()
        self.epochs = epochs(settings, len(loaders.train))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", torch.cuda.current_device())
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as Composer has it
        self.frozen = Frozen.of(task.network)
        self.network = task.network.to(self.device)
        self.model = self._called()
        self.optimizer = build_optimizer(settings.optimizer, self.network)
        length = len(loaders.train)
        self.steps = steps(settings, length)
        self.scheduler = build_scheduler(settings.scheduler, self.optimizer, length=length, steps=self.steps)
        self.scaler = GradScaler(self.device.type, enabled=settings.precision == "amp_fp16")
        self.run = self._run()
        self.stretched = self.run.stretch(self.scheduler)
        self.epoch = self.batches = self.samples = 0
        self.tokens = 0  # of this rank
        self.seconds = 0.0
        self.metrics: dict[str, float] = {}
        self.tests = MetricsRecord(settings.folder, self.ranks.rank)
        self.tested_at = self.saved_at = -1  # batches
        self.between_epochs = True

    def _called(self) -> Any:
        """The network as the loop calls it."""
        model: Any = self.network
        if self.settings.fsdp:
            # Gloo sums 32-bit gradients where it is asked for their mean (torch 2.7).
            policy = MixedPrecisionPolicy(reduce_dtype=torch.float64 if self.device.type == "cpu" else None)
            shard(model, policy)
        elif self.ranks.world_size > 1:
            model = DistributedDataParallel(model)
        self._replicas = model if isinstance(model, DistributedDataParallel) else None
        return torch.compile(model) if self.settings.compile else model

    def _run(self) -> Pruner | WholeEpochs:
        settings, pruning = self.settings, self.settings.pruning
        if self.method is None:
            return WholeEpochs(self.loaders.train, self.loaders.prunable, steps=self.steps)
        return Pruner(
            self.method,
            self.model,
            self.loaders.train,
            epochs=self.epochs,
            folder=settings.folder,
            run_name=settings.run_name,
            seed=settings.seed,
            progress=progress_of(settings),
            output_layer=pruning.output_layer,
            loss_function=self.task.loss_function,
            overwrite=settings.overwrite,
        )

    def fit(self) -> Trained:
        """Train, and test at the end."""
        started = time.perf_counter()
        seed_generators(self.settings.seed + self.ranks.rank)
        self._go_on()
        self.tests.go_on(self.batches)
        self.clock = time.perf_counter()
        if self.epoch and self.between_epochs:
            self._tell()
        with self.run:
            for epoch in self.run:
                for batch in self.run.batches():
                    self._train(batch)
                    self.batches += 1
                    self.samples += self.ranks.world_size * batch_size(batch)
                    self.tokens += count_tokens(batch)
                    self._pause(ba=self.batches)
                self.epoch = epoch + 1
                self._pause(ep=self.epoch)
                self._tell()
        if not self.metrics:  # the run was over before
            self._test()
        engine = self.run.engine if isinstance(self.run, Pruner) else None
        return Trained(
            epochs=self.epoch,
            metrics=self.metrics,
            forwarded=self.samples,
            tokens=self._all_tokens(),
            seconds=self.seconds,
            wall_seconds=time.perf_counter() - started,
            engine=engine,
            pruning=None if engine is None else engine.summary(),
        )

    # A step ------------------------------------------------------------------------------------------------------

    def _train(self, batch: Any) -> None:
        self.network.train()
        self.optimizer.zero_grad()
        factor_of = token_factors(batch, self.ranks) if isinstance(self.task, LanguageModelling) else lambda _: 1.0
        batch, total, done = self.on_device(batch), batch_size(batch), 0
        for part in self.run.microbatches(batch, self.settings.device_train_microbatch_size or total):
            rows = slice(done, done := done + batch_size(part))
            with self._synchronised(done == total):
                part = self.loaders.train_transform(part)
                with self.autocast():
                    outputs = self.task.forward(self.model, part)
                    loss = self.task.loss(outputs, part)
                self.scaler.scale(self.run.loss(loss) * factor_of(rows)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.stretched.step()

    def on_device(self, batch: Any) -> Any:
        """A batch on the network's device."""
        return map_tensors(batch, lambda tensor: tensor.to(self.device, non_blocking=True))

    def autocast(self) -> torch.autocast:
        """The context in which the network runs: of the run's precision."""
        dtype = DTYPES[self.settings.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32)

    def _synchronised(self, is_last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once a batch, after its last part."""
        return nullcontext() if is_last or self._replicas is None else self._replicas.no_sync()

    # Between steps -----------------------------------------------------------------------------------------------

    def _pause(self, **now: int) -> None:
        """Test and save, where it is time for that after a batch (``ba``) or an epoch (``ep``), and at the end."""
        settings, is_over = self.settings, self.epoch == self.epochs

        def is_due(interval: str | None) -> bool:
            if interval is None:
                return False
            every = parse_duration(interval, INTERVAL_UNITS["loop"])
            return is_over or (every.unit in now and now[every.unit] % every.value == 0)

        paused = time.perf_counter()
        self.seconds += paused - self.clock
        if is_due(settings.eval_interval) and self.tested_at != self.batches:
            self._test()
        self.clock = time.perf_counter()
        if isinstance(self.run, Pruner):
            self.run.engine.pace.leave_out(self.clock - paused)
        if is_due(settings.save_interval) and self.saved_at != self.batches:
            self._save()
        if "ep" in now and settings.progress_bar and self.ranks.rank == 0:
            tested = self.metrics if self.tested_at == self.batches else {}
            shown = "".join(f", {name} {value:.4f}" for name, value in tested.items())
            print(f"epoch {self.epoch} of {self.epochs}: {self.samples:,} samples so far{shown}", file=sys.stderr)

    def _tell(self) -> None:
        """Call ``after_epoch``, beside the clock."""
        if self.after_epoch is not None:
            self.seconds += time.perf_counter() - self.clock
            self.after_epoch(self.epoch)
            self.clock = time.perf_counter()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The test metrics of the network as it is, over all ranks; collective."""
        self.network.eval()
        if self.settings.fsdp:  # checkpoints have those of rank 0; DDP hands them round by itself
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
        metrics = [metric.to(self.device) for metric in self.task.metrics()]
        tested_on: Any = self.loaders.test.dataset
        # Without the repeat by which the ranks have equally many.
        left = len(range(self.ranks.rank, len(tested_on), self.ranks.world_size))
        for batch in self.loaders.test:
            with self.autocast():
                outputs, targets = self.task.evaluate(self.loaders.test_transform(self.on_device(batch)))
            if left:
                for metric in metrics:
                    metric.update(outputs[:left], targets[:left])
            left = max(0, left - len(targets))
        return {type(metric).__name__: float(metric.compute()) for metric in metrics}

    def _test(self) -> None:
        self.metrics = self.evaluate()
        self.tested_at = self.batches
        self.tests.add(batch=self.batches, samples=self.samples, metrics=self.metrics)

    # Going on ----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        weights, moments = get_state_dict(self.network, self.optimizer, options=WHOLE)
        for name in frozen_names(self.network):  # a tied one has a second name, under which torch leaves it in
            weights.pop(name, None)
        state = {
            "network": weights,
            "frozen": asdict(self.frozen),
            "optimizer": moments,
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "run": self.run.state_dict(),
            "counts": [self.epoch, self.batches, self.samples, self._all_tokens()],
            "seconds": self.seconds + time.perf_counter() - self.clock,
        }
        folder = join(self.settings.folder, CHECKPOINTS)
        save_checkpoint(folder, f"ep{self.epoch}-ba{self.batches}.pt", state)
        self.saved_at = self.batches

    def _go_on(self) -> None:
        """Load the checkpoint that the settings name, or the newest of the run folder, if there is one."""
        settings = self.settings
        newest = newest_checkpoint(join(settings.folder, CHECKPOINTS)) if settings.autoresume else None
        path = newest or settings.load_path
        if path is None:
            return
        state = self.ranks.on_every_rank(lambda: load_checkpoint(path))
        refuse_missing(path, self.network, state["network"])
        self.frozen.refuse_other(state["frozen"], path)
        set_state_dict(
            self.network,
            self.optimizer,
            model_state_dict=state["network"],
            optim_state_dict=state["optimizer"],
            options=WHOLE,
        )
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.run.load_state_dict(state["run"])
        self.epoch, self.batches, self.samples, tokens = state["counts"]
        self.tokens = tokens if self.ranks.rank == 0 else 0
        self.seconds = state["seconds"]
        self.between_epochs = not state["run"]["done"]

    def _all_tokens(self) -> int:
        """Trained on so far, over all ranks; collective."""
        return int(self.ranks.communicator.all_reduce_sum(np.array([self.tokens]))[0])
