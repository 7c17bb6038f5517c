"""A run through Composer's Trainer."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import DataSpec, Trainer
from composer.core import Callback, Evaluator, State
from composer.loggers import Logger
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection

from ted_stream import DataPruning
from ted_stream.engine import Ranks
from ted_stream.export.runs import finish_run
from ted_stream.files import is_remote, join
from ted_stream.trainers.composer.checkpoints import link_newest

from .checkpoints import CHECKPOINTS, Frozen, refuse_damaged
from .composer_resuming import Resuming
from .datasets import Loaders
from .durations import beyond_the_end
from .metrics_record import MetricsRecord
from .optimizers import build_optimizer, build_scheduler
from .results import Trained
from .settings import ConfigError, Settings, epochs, steps
from .sharding import let_composer_shard_layers
from .tasks import Classification, LanguageModelling, Task
from .text_batches import count_targets, count_tokens, progress_of

__all__ = ["Host", "composer_model", "join_ranks"]

# Weights stay fp32 and autocast does the rest, and checkpoints have one file: both as without sharding.
FSDP = FSDP2Config(state_dict_type="full", mixed_precision="FULL")


def join_ranks() -> None:
    """Make the process group of the ranks that were launched."""
    dist.initialize_dist(get_device(None))


def composer_model(task: Task) -> ComposerModel:
    """A task as Composer takes it, with its test metrics."""
    if not isinstance(task, Classification):
        network: Any = task.network
        trained = [name for name, weights in network.named_parameters() if weights.requires_grad]
        return HuggingFaceModel(
            network,
            use_logits=True,
            metrics=[],
            eval_metrics=task.metrics(),
            shift_labels=isinstance(task, LanguageModelling),
            # Of adapters' checkpoints Composer leaves all else out: a head that is trained beside them, too.
            should_save_peft_only=all("lora_" in name for name in trained),
        )
    return ComposerClassifier(
        task.network,
        num_classes=task.classes,
        train_metrics=MetricCollection([]),  # the loss is logged anyway
        val_metrics=MetricCollection(task.metrics()),
        loss_fn=partial(cross_entropy, label_smoothing=task.label_smoothing),
    )


class RecordTests(Callback):
    """Keeps what every test finds."""

    def __init__(self, tests: MetricsRecord) -> None:
        self.tests = tests

    def fit_start(self, state: State, logger: Logger) -> None:
        """Go on where a checkpoint was loaded."""
        del logger
        self.tests.go_on(state.timestamp.batch.value)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write what a test found."""
        del logger
        now = state.timestamp
        self.tests.add(batch=now.batch.value, samples=now.sample.value, metrics=tested(state))


class SameFrozen(Callback):
    """Refuses to go on upon other frozen weights, which Composer's checkpoints of adapters leave out."""

    def __init__(self, network: nn.Module) -> None:
        self._frozen = Frozen.of(network)

    def state_dict(self) -> dict[str, Any]:
        """What is frozen."""
        return asdict(self._frozen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare."""
        self._frozen.refuse_other(state)


def tested(state: State) -> dict[str, float]:
    """The metrics of the last test, over all ranks."""
    return {name: float(metric.compute()) for name, metric in state.eval_metrics["test"].items()}


class Host:
    """A run that has not begun: nothing is written before `fit`.

    Args:
        settings: of the run.
        task: what is trained.
        loaders: of this rank.
    """

    def __init__(self, settings: Settings, task: Task, loaders: Loaders) -> None:
        self.settings, self.loaders = settings, loaders
        self.counts_targets = isinstance(task, LanguageModelling)
        self.same_frozen = SameFrozen(task.network)
        self.model = composer_model(task)
        if settings.fsdp:
            let_composer_shard_layers(task.network)
        self.optimizer = build_optimizer(settings.optimizer, self.model)
        length = len(loaders.train)
        self.scheduler = build_scheduler(
            settings.scheduler, self.optimizer, length=length, steps=steps(settings, length)
        )
        pruning = settings.pruning
        self.pruning: DataPruning | None = None
        if pruning.value is not None:
            self.pruning = DataPruning(
                pruning.value,
                folder=settings.folder,
                seed=settings.seed,
                progress=progress_of(settings),
                output_layer=pruning.output_layer,
                overwrite=settings.overwrite,
            )

    def _told(self, is_over: bool) -> dict[str, Any] | None:
        """What is known of the pruning; of a run that was over before, from its folder, where its manifest lacks."""
        if self.pruning is None:
            return None
        if not is_over:
            return self.pruning.engine.summary()
        return Ranks().on_rank_zero(lambda: finish_run(self.settings.folder))

    def _count(self, batch: Any) -> int | dict[str, int]:
        """The tokens of a batch, and those that are targets, as Composer asks for them; one wait for the device."""
        if not self.counts_targets:
            return count_tokens(batch)
        total, targets = torch.stack([batch["attention_mask"].sum(), count_targets(batch).sum()]).tolist()
        return {"total": total, "loss_generating": targets}

    def _refuse_damaged(self) -> None:
        """Look at the checkpoint that Composer will go on from, where it is on this machine."""
        newest = join(self.settings.folder, "checkpoints/latest-rank0.pt")
        has_newest = self.settings.autoresume and not is_remote(newest) and Path(newest).exists()
        path = newest if has_newest else self.settings.load_path
        if path is not None and not is_remote(path) and Path(path).is_file():
            with Path(path).open("rb") as file:
                refuse_damaged(path, file)

    def fit(self) -> Trained:
        """Train, and test at the end."""
        settings, loaders = self.settings, self.loaders
        checkpoints = join(settings.folder, CHECKPOINTS)
        if settings.autoresume and not is_remote(settings.folder):
            Ranks().on_rank_zero(lambda: link_newest(Path(checkpoints, "latest-rank0.pt")))
        Ranks().on_rank_zero(self._refuse_damaged)
        test_data = DataSpec(loaders.test, microbatch_transforms=loaders.test_transform)
        tests = RecordTests(MetricsRecord(settings.folder, dist.get_global_rank()))
        trainer = Trainer(
            model=self.model,
            train_dataloader=DataSpec(
                loaders.train, microbatch_transforms=loaders.train_transform, get_num_tokens_in_batch=self._count
            ),
            eval_dataloader=Evaluator(label="test", dataloader=test_data),
            eval_interval=settings.eval_interval,
            max_duration=settings.max_duration,
            optimizers=self.optimizer,
            schedulers=self.scheduler,
            step_schedulers_every_batch=True,
            algorithms=self.pruning,
            callbacks=[tests, self.same_frozen, *([] if self.pruning is not None else [Resuming()])],
            seed=settings.seed,
            run_name=settings.run_name,
            precision=settings.precision,
            parallelism_config={"fsdp": FSDP} if settings.fsdp else None,
            device_train_microbatch_size=settings.device_train_microbatch_size,
            accumulate_train_batch_on_tokens=self.counts_targets,
            compile_config={} if settings.compile else None,
            progress_bar=settings.progress_bar,
            save_folder=checkpoints if settings.save_interval else None,
            save_interval=settings.save_interval or "1ep",
            # A file that a kill left half written would stop every resumption.
            save_overwrite=True,
            autoresume=settings.autoresume,
            load_path=settings.load_path,
        )
        started = time.perf_counter()
        try:
            state = trainer.state
            assert state.max_duration is not None
            done = state.timestamp.get(state.max_duration.unit)
            is_over = state.max_duration == done
            is_within = done.unit.value == "ep" and state.timestamp.batch_in_epoch.value > 0
            if state.max_duration < done or (is_over and is_within):
                raise ConfigError(beyond_the_end(done.to_timestring(), state.max_duration.to_timestring()))
            if is_over:  # killed after its last checkpoint: Composer would refuse to go on
                tests.tests.go_on(state.timestamp.batch.value)
                trainer.eval()
            else:
                trainer.fit()
            return Trained(
                epochs=epochs(settings, len(loaders.train)) if self.pruning is None else state.timestamp.epoch.value,
                metrics=tested(state),
                forwarded=state.timestamp.sample.value,
                tokens=state.timestamp.token.value,
                seconds=state.timestamp.total_wct.total_seconds(),
                wall_seconds=time.perf_counter() - started,
                engine=None if self.pruning is None or is_over else self.pruning.engine,
                pruning=self._told(is_over),
            )
        finally:
            trainer.close()
