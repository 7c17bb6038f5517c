"""The learning rate at every epoch's start and at the end is that of a full-data run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, State, Trainer
from composer.optim import (
    CosineAnnealingScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
    MultiStepScheduler,
    StepScheduler,
)
from small_run import make_model
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from ted_stream import TED

EPOCHS = 6
BATCHES = 10  # of a full epoch: 80 samples in batches of 8


class Rates(Callback):
    """Records the learning rate of every epoch's first batch, and the one at the end."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.lengths: list[int] = []

    def _rate(self, state: State) -> float:
        return state.optimizers[0].param_groups[0]["lr"]

    def batch_start(self, state: State, logger: Any) -> None:
        if state.timestamp.batch_in_epoch == 0:
            self.rates.append(self._rate(state))

    def epoch_end(self, state: State, logger: Any) -> None:
        assert state.dataloader_len is not None
        self.lengths.append(state.dataloader_len.value)

    def fit_end(self, state: State, logger: Any) -> None:
        self.rates.append(self._rate(state))


COMPOSER_SCHEDULERS = {
    "cosine": lambda: CosineAnnealingScheduler(),
    "warm-up in batches": lambda: LinearWithWarmupScheduler(t_warmup="13ba"),
    "warm-up in epochs, cosine": lambda: CosineAnnealingWithWarmupScheduler(t_warmup="2ep"),
    "warm-up as a share": lambda: LinearWithWarmupScheduler(t_warmup="0.4dur"),
    "multi-step": lambda: MultiStepScheduler(milestones=["1ep", "0.5dur", "45ba"], gamma=0.3),
    "step": lambda: StepScheduler(step_size="7ba", gamma=0.9),
}


@pytest.mark.parametrize("name", COMPOSER_SCHEDULERS)
def test_composer_schedules(
    name: str, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(80)

    def rates(algorithms: list[TED]) -> Rates:
        recorder = Rates()
        make_trainer(folder, algorithms, callbacks=[recorder], schedulers=COMPOSER_SCHEDULERS[name]()).fit()
        return recorder

    full, pruned = rates([]), rates([TED(0.6, annealing=0.2, folder=str(tmp_path))])
    assert full.lengths == [BATCHES] * EPOCHS
    assert pruned.lengths[0] == BATCHES
    assert min(pruned.lengths) < BATCHES // 2 + 1
    assert len(set(full.rates)) > 1
    assert pruned.rates == full.rates


@pytest.mark.parametrize("name", ["onecycle", "cosine every batch", "cosine every epoch", "multi-step every epoch"])
def test_native_schedules(
    name: str, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(80)

    def rates(algorithms: list[TED]) -> Rates:
        model, recorder = make_model(), Rates()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scheduler = {
            "onecycle": lambda: OneCycleLR(optimizer, max_lr=0.3, total_steps=EPOCHS * BATCHES),
            "cosine every batch": lambda: CosineAnnealingLR(optimizer, T_max=EPOCHS * BATCHES),
            "cosine every epoch": lambda: CosineAnnealingLR(optimizer, T_max=EPOCHS),
            "multi-step every epoch": lambda: MultiStepLR(optimizer, milestones=[2, 4]),
        }[name]()
        every_batch = name in ("onecycle", "cosine every batch")
        make_trainer(
            folder,
            algorithms,
            callbacks=[recorder],
            model=model,
            optimizers=optimizer,
            schedulers=scheduler,
            step_schedulers_every_batch=every_batch,
        ).fit()
        return recorder

    full, pruned = rates([]), rates([TED(0.6, annealing=0.2, folder=str(tmp_path))])
    assert min(pruned.lengths) < BATCHES // 2 + 1
    assert len(set(full.rates)) > 1
    assert pruned.rates == pytest.approx(full.rates, rel=1e-12)


def test_a_second_fit_goes_on_with_the_schedule(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(80)

    def rates(algorithms: list[TED]) -> list[float]:
        recorder = Rates()
        schedule = MultiStepScheduler(milestones=["2ep", "35ba", "45ba"], gamma=0.3)
        trainer = make_trainer(folder, algorithms, callbacks=[recorder], schedulers=schedule, max_duration="3ep")
        trainer.fit()
        trainer.fit(duration="3ep")
        return recorder.rates

    assert rates([TED(0.6, annealing=0, folder=str(tmp_path))]) == rates([])


def test_a_bound_on_the_batches_per_epoch_is_kept(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Under train_subset_num_batches a full epoch is the subset, and a pruned one is never longer."""
    folder = make_mds(80)

    def run(algorithms: list[TED]) -> Rates:
        recorder = Rates()
        schedule = CosineAnnealingScheduler()
        make_trainer(folder, algorithms, callbacks=[recorder], schedulers=schedule, train_subset_num_batches=7).fit()
        return recorder

    full, pruned = run([]), run([TED(0.6, annealing=0.2, folder=str(tmp_path))])
    assert full.lengths == [7] * EPOCHS
    assert (pruned.lengths[0], max(pruned.lengths)) == (7, 7)
    assert min(pruned.lengths) < 7
    assert pruned.rates == full.rates
