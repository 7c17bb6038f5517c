"""The learning rate at every epoch's start and at the end is that of a full-data run."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, State, Trainer
from composer.core import Time, TimeUnit
from composer.optim import (
    ConstantScheduler,
    CosineAnnealingScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
    MultiStepScheduler,
    StepScheduler,
)
from loop_runs import starts_by_sizes
from small_run import TupleDataset, make_model
from small_run import make_ted as make_ted_by
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader

from ted_stream import TED, DataPruning, read_skip_list

EPOCHS = 6
BATCHES = 10  # of a full epoch: 80 samples in batches of 8

make_ted = partial(make_ted_by, progress="epochs")  # as far as full epochs, so that rates compare


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


@pytest.mark.long
@pytest.mark.parametrize("name", COMPOSER_SCHEDULERS)
def test_composer_schedules(
    name: str, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(80)

    def rates(algorithms: list[DataPruning]) -> Rates:
        recorder = Rates()
        make_trainer(folder, algorithms, callbacks=[recorder], schedulers=COMPOSER_SCHEDULERS[name]()).fit()
        return recorder

    full, pruned = rates([]), rates([make_ted(0.6, annealing=0.2, folder=str(tmp_path))])
    assert full.lengths == [BATCHES] * EPOCHS
    assert pruned.lengths[0] == BATCHES
    assert min(pruned.lengths) < BATCHES // 2 + 1
    assert len(set(full.rates)) > 1
    assert pruned.rates == full.rates


NATIVE = ("onecycle", "cosine every batch", "cosine every epoch", "multi-step every epoch")


@pytest.mark.long
@pytest.mark.parametrize("name", NATIVE)
def test_native_schedules(
    name: str, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(80)

    def rates(algorithms: list[DataPruning]) -> Rates:
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

    full, pruned = rates([]), rates([make_ted(0.6, annealing=0.2, folder=str(tmp_path))])
    assert min(pruned.lengths) < BATCHES // 2 + 1
    assert len(set(full.rates)) > 1
    assert pruned.rates == pytest.approx(full.rates, rel=1e-12)


@pytest.mark.long
def test_a_second_fit_goes_on_with_the_schedule(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(80)

    def rates(algorithms: list[DataPruning]) -> list[float]:
        recorder = Rates()
        schedule = MultiStepScheduler(milestones=["2ep", "35ba", "45ba"], gamma=0.3)
        trainer = make_trainer(folder, algorithms, callbacks=[recorder], schedulers=schedule, max_duration="3ep")
        trainer.fit()
        trainer.fit(duration="3ep")
        return recorder.rates

    assert rates([make_ted(0.6, annealing=0, folder=str(tmp_path))]) == rates([])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "kill"),
    [
        ("cosine", False),
        ("multi-step", False),
        ("native cosine", False),
        ("native cosine", True),
        ("native step", True),
        ("two native", False),
    ],
)
def test_a_second_fit_may_bring_a_schedule_of_its_own(
    kill: bool, name: str, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Composer's are functions of the time since the run began, native ones count from the fit that brings them."""
    folder = make_mds(80)

    def schedule(optimizer: Any) -> Any:
        if name in COMPOSER_SCHEDULERS:
            return COMPOSER_SCHEDULERS[name]()
        if name == "native cosine":
            return CosineAnnealingLR(optimizer, T_max=3 * BATCHES)
        steps = MultiStepLR(optimizer, milestones=[BATCHES, 2 * BATCHES], gamma=0.3)
        return steps if name == "native step" else [steps, MultiStepLR(optimizer, milestones=[BATCHES], gamma=0.5)]

    def rates(algorithms: list[DataPruning], out: Path) -> list[float]:
        every: dict[str, Any] = {} if name in COMPOSER_SCHEDULERS else {"step_schedulers_every_batch": True}

        def trainer(schedulers: Any, **arguments: Any) -> tuple[Trainer, Rates]:
            recorder = Rates()
            settings = {"callbacks": [recorder], "model": model, "optimizers": optimizer, "schedulers": schedulers}
            return make_trainer(folder, algorithms, **settings, **arguments), recorder

        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        saving = {"save_folder": str(out), "save_interval": "1ep"}
        first, recorder = trainer(ConstantScheduler(), max_duration="3ep", **saving)
        first.fit()
        first.fit(duration="3ep", schedulers=schedule(optimizer), **every)
        if kill:
            model = make_model()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            load = str(next(out.glob("ep4-*-rank0.pt")))
            resumed, again = trainer(schedule(optimizer), max_duration="6ep", load_path=load, **every)
            resumed.fit()
            assert again.rates == pytest.approx(recorder.rates[-3:], rel=1e-12)
        return recorder.rates

    pruned = rates([make_ted(0.6, annealing=0, folder=tmp_path / "run")], tmp_path / "pruned")
    assert pruned == pytest.approx(rates([], tmp_path / "full"), rel=1e-12)


@pytest.mark.long
def test_a_native_schedule_goes_on_where_it_was_when_time_is_reset(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(80)

    def rates(algorithms: list[DataPruning]) -> list[float]:
        model, recorder = make_model(), Rates()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        trainer = make_trainer(
            folder,
            algorithms,
            callbacks=[recorder],
            model=model,
            optimizers=optimizer,
            schedulers=LinearLR(optimizer, total_iters=6 * BATCHES),
            step_schedulers_every_batch=True,
            max_duration="3ep",
        )
        trainer.fit()
        trainer.fit(reset_time=True)
        return recorder.rates

    pruned = rates([make_ted(0.6, annealing=0, folder=tmp_path)])
    assert pruned == pytest.approx(rates([]), rel=1e-12)


@pytest.mark.long
def test_a_bound_on_the_batches_per_epoch_is_kept(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Under train_subset_num_batches a full epoch is the subset, and a pruned one is never longer."""
    folder = make_mds(80)

    def run(algorithms: list[DataPruning]) -> Rates:
        recorder = Rates()
        schedule = CosineAnnealingScheduler()
        make_trainer(folder, algorithms, callbacks=[recorder], schedulers=schedule, train_subset_num_batches=7).fit()
        return recorder

    full, pruned = run([]), run([make_ted(0.6, annealing=0.2, folder=str(tmp_path))])
    assert full.lengths == [7] * EPOCHS
    assert (pruned.lengths[0], max(pruned.lengths)) == (7, 7)
    assert min(pruned.lengths) < 7
    assert pruned.rates == full.rates


class EveryRate(Callback):
    """The learning rate of every batch, and where in the full run it is, in batches."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []

    def batch_start(self, state: State, logger: Any) -> None:
        assert state.dataloader_len is not None
        share = state.timestamp.batch_in_epoch.value / state.dataloader_len.value
        position = (state.timestamp.epoch.value + share) * BATCHES
        self.rates.append((position, state.optimizers[0].param_groups[0]["lr"]))


def closed_form(name: str, position: float) -> float:
    """The learning rate after so many batches of the full run, computed from the definition of the schedule."""
    total = EPOCHS * BATCHES
    if name == "composer cosine":
        return 0.1 * (1 + math.cos(math.pi * position / total)) / 2
    if name == "native cosine":
        return 0.1 * (1 + math.cos(math.pi * position / total)) / 2
    if name == "native linear":
        return 0.1 * (0.1 + 0.9 * min(1, position / total))
    peak = 0.3 * total - 1  # one cycle: torch's phases end at 0.3 of the steps, and at the last step
    low, high, final = 0.3 / 25, 0.3, 0.3 / 25 / 1e4
    if position <= peak:
        return high + (low - high) * (1 + math.cos(math.pi * position / peak)) / 2
    return final + (high - final) * (1 + math.cos(math.pi * (position - peak) / (total - 1 - peak))) / 2


@pytest.mark.quick("composer cosine")
@pytest.mark.parametrize("name", ["composer cosine", "native cosine", "native linear", "native onecycle"])
def test_rates_within_pruned_epochs_are_exact(
    name: str, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """At every batch, not only at every epoch's start: nothing is rounded to a whole batch of the full run."""
    model, recorder = make_model(), EveryRate()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler: Any = {
        "composer cosine": lambda: CosineAnnealingScheduler(),
        "native cosine": lambda: CosineAnnealingLR(optimizer, T_max=EPOCHS * BATCHES),
        "native linear": lambda: LinearLR(optimizer, start_factor=0.1, total_iters=EPOCHS * BATCHES),
        "native onecycle": lambda: OneCycleLR(optimizer, max_lr=0.3, total_steps=EPOCHS * BATCHES),
    }[name]()
    make_trainer(
        make_mds(80),
        [make_ted(0.6, annealing=0.2, folder=tmp_path)],
        callbacks=[recorder],
        model=model,
        optimizers=optimizer,
        schedulers=scheduler,
        step_schedulers_every_batch=None if name == "composer cosine" else True,
    ).fit()
    assert any(position % 1 for position, _ in recorder.rates)
    for position, rate in recorder.rates:
        if name == "composer cosine":
            position = max(0.0, position - 1)  # Composer steps before it counts the batch
        assert rate == pytest.approx(closed_form(name, position), rel=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("by_sizes", [False, True])
def test_progress_by_samples_advances_by_what_is_forwarded(
    by_sizes: bool, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """The rate falls evenly over all batches of the run, so that annealing is not spent at the schedule's end."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rates: list[float] = []

    class Watch(Callback):
        def batch_start(self, state: State, logger: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    sizes = np.random.default_rng(0).integers(1, 500, 80)
    pruning = DataPruning(TED(0.6, annealing=0.2), folder=tmp_path, progress=sizes if by_sizes else "samples")
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=EPOCHS * BATCHES)
    make_trainer(
        make_mds(80),
        [pruning],
        callbacks=[Watch()],
        model=model,
        optimizers=optimizer,
        schedulers=schedule,
        step_schedulers_every_batch=True,
    ).fit()
    kept = [record.kept for record in pruning.records]
    starts = [sum(kept[:epoch]) / sum(kept) for epoch in range(EPOCHS + 1)]
    if by_sizes:
        lists = [read_skip_list(tmp_path / record.skip_list) for record in pruning.records]
        known = [int(sizes[skip_list.kept_ids()].sum()) for skip_list in lists]
        assert [record.kept_size for record in pruning.records] == known
        starts = starts_by_sizes(known, [count * sizes.mean() for count in kept], 1.0)
    expected = []
    for epoch, count in enumerate(kept):
        batches = -(-count // 8)
        for at in range(batches):
            expected.append(0.1 * (1 - starts[epoch] - (starts[epoch + 1] - starts[epoch]) * at / batches))
    assert rates == pytest.approx(expected, rel=1e-9)
    assert schedule.last_epoch == pytest.approx(EPOCHS * BATCHES)


@pytest.mark.long
@pytest.mark.parametrize(("samples", "batch", "epochs", "ratio"), [(60, 8, 6, 0.8), (60, 16, 2, 0.5)])
def test_one_cycle_ends_where_it_ends(
    samples: int,
    batch: int,
    epochs: int,
    ratio: float,
    make_mds: Callable[..., str],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    """It refuses a step beyond its last; rounding, or batches that advance by less than one, must not take one."""
    model, folder = make_model(), make_mds(samples)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = OneCycleLR(optimizer, max_lr=0.3, total_steps=epochs * -(-samples // batch))
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=batch)
    make_trainer(
        folder,
        [DataPruning(TED(ratio, annealing=0.0), folder=tmp_path, progress="samples")],
        model=model,
        dataloader=DataLoader(dataset, batch_size=batch),
        optimizers=optimizer,
        schedulers=schedule,
        step_schedulers_every_batch=True,
        max_duration=f"{epochs}ep",
    ).fit()
    assert schedule.last_epoch == schedule.total_steps


@pytest.mark.long
def test_schedules_of_ones_own_may_compute_with_times(
    make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    seen: list[float] = []

    def inverse_square_root(state: State) -> float:
        now, scale = state.timestamp.batch, Time(4, TimeUnit.BATCH)
        shifted = (now + scale) / scale
        assert ((now * 2 - now) / scale).value == pytest.approx((now / scale).value)
        assert (now % 4) < scale
        seen.append(now.value)
        return shifted.value**-0.5

    def table(step: int) -> float:
        return [1.0, 0.5, 0.25, 0.1][min(3, step // 20)]

    folder = make_mds(80)
    make_trainer(folder, [make_ted(0.6, folder=tmp_path / "a")], schedulers=inverse_square_root).fit()
    assert any(position % 1 for position in seen)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    make_trainer(
        folder,
        [make_ted(0.6, folder=tmp_path / "b")],
        model=model,
        optimizers=optimizer,
        schedulers=LambdaLR(optimizer, table),
        step_schedulers_every_batch=True,
    ).fit()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
