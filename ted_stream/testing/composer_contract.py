"""Trains a run in Composer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ted_stream.extras import optional_imports
from ted_stream.testing.contract_parts import (
    make_loader,
    make_method,
    make_network,
    make_optimizer,
    make_scheduler,
    save_result,
    seed_of,
)
from ted_stream.testing.contract_watch import die, watch
from ted_stream.testing.runs import DEATHS_IN_EVERY_HOST, Run
from ted_stream.trainers.composer import DataPruning

with optional_imports():
    from composer import Callback, Event, State, Trainer
    from composer.models import ComposerClassifier
    from composer.utils.collect_env import get_cpu_model
    from composer.utils.parallelism import FSDP2Config

__all__ = ["train"]

get_cpu_model()  # which takes a second, and every Trainer asks for: remembered here, ranks that are forked know it


class Watch(Callback):
    """Watches the run's engine from where there is one."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin

    def fit_start(self, state: State, logger: Any) -> None:
        """Begin."""
        self.begin()


class Die(Callback):
    """At one of Composer's events."""

    def __init__(self, out: Path, event: str, epoch: int, batch: int) -> None:
        self.out, self.event, self.at = out, Event(event), (epoch, batch)

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        """Die if it is time."""
        here = (state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value)
        if event == self.event and here == self.at:
            die(self.out)


class Stop(Callback):
    """End the run in the middle of an epoch, once its last batch is in a checkpoint."""

    def __init__(self, after: int) -> None:
        self.after = after

    def batch_start(self, state: State, logger: Any) -> None:
        """Stop if it is time."""
        if state.timestamp.batch.value == self.after:
            raise KeyboardInterrupt


def train(run: Run, out: Path, rank: int) -> None:
    """Train, and write down what came of it."""
    network, loader = make_network(run), make_loader(run)
    for layer in (network[0], network[3]):
        layer._fsdp_wrap = True  # pyright: ignore[reportArgumentType]
    model = ComposerClassifier(network, num_classes=3)
    pruning = DataPruning(make_method(run), folder=str(out / "run"))
    callbacks: list[Callback] = [Watch(lambda: watch(pruning.engine, run, out, rank))]
    if run.kill and run.kill["rank"] == rank and run.kill["event"] not in DEATHS_IN_EVERY_HOST:
        callbacks.append(Die(out, run.kill["event"], run.kill["epoch"], run.kill["batch"]))
    if run.stop_after:
        callbacks.append(Stop(run.stop_after))
    fsdp = None
    if run.parallelism != "ddp":
        fsdp = {"fsdp": FSDP2Config(state_dict_type=run.parallelism, mixed_precision="FULL")}
    optimizer = make_optimizer(model)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=f"{run.epochs}ep",
        optimizers=optimizer,
        schedulers=make_scheduler(optimizer, run, len(loader)),
        step_schedulers_every_batch=True,
        algorithms=[pruning],
        callbacks=callbacks,
        parallelism_config=fsdp,
        device_train_microbatch_size=run.microbatch_size,
        device="cpu",
        seed=seed_of(0),  # to which Composer adds the rank
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
    save_result(out, rank, network, pruning.engine)
    trainer.close()
