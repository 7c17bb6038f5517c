"""Runs whose length changes: extended on resume, in several fits, cut short in every epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, State, Trainer
from composer.optim import CosineAnnealingWithWarmupScheduler
from small_run import BATCH_SIZE, TupleDataset, make_ted
from torch.utils.data import DataLoader

from ted_stream import TED, DataPruning

NUM_SAMPLES = 101


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


def kept_of(ted: DataPruning) -> list[int]:
    return [record.kept for record in ted.records]


def planned(num_epochs: int, epochs: range, annealing: float = 0.125) -> list[int]:
    schedule = TED(0.6, annealing=annealing).keep_ratios
    return [schedule.num_kept(epoch, num_epochs, NUM_SAMPLES) for epoch in epochs]


@pytest.mark.long
@pytest.mark.parametrize("checkpoint", ["ep2-ba22", "ep3-ba29", "latest"])
def test_a_longer_max_duration_on_resume_replans_the_epochs_to_come(
    checkpoint: str, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """An epoch that has started keeps its list; the ones after it follow the schedule of the new length."""
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba", "save_overwrite": True}
    first = make_ted(0.6, folder=str(tmp_path))
    make_trainer(folder, [first], max_duration="4ep", run_name="run", **saving).fit()
    assert kept_of(first) == planned(4, range(4))
    load = tmp_path / "checkpoints" / f"{checkpoint}-rank0.pt"
    extended = make_ted(0.6, folder=str(tmp_path))
    trainer = make_trainer(folder, [extended], max_duration="8ep", run_name="run", load_path=str(load), **saving)
    started = trainer.state.timestamp.epoch.value + (trainer.state.timestamp.batch_in_epoch > 0)
    trainer.fit()
    assert kept_of(extended) == kept_of(first)[:started] + planned(8, range(started, 8))
    assert [record.digest for record in extended.records][:started] == [r.digest for r in first.records][:started]
    assert [record.forwarded for record in extended.records] == kept_of(extended)


@pytest.mark.long
def test_several_fits_go_on_with_scores_and_lists(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    ted = make_ted(0.6, folder=str(tmp_path))
    dataset = TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
    trainer = make_trainer(folder, [ted], dataset=dataset, max_duration=None)
    trainer.fit(duration="3ep")
    trainer.fit(duration="4ep")
    assert kept_of(ted) == planned(3, range(3)) + planned(7, range(3, 7))
    assert [record.forwarded for record in ted.records] == kept_of(ted)
    # Nothing is measured anew in the second fit.
    assert [record.unmeasured for record in ted.records] == [NUM_SAMPLES] + [0] * 6
    assert [record.epoch for record in ted.records] == list(range(7))


def test_a_second_fit_on_another_dataset_is_refused(
    folder: str, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(folder, [make_ted(0.6, folder=str(tmp_path))], max_duration=None)
    trainer.fit(duration="2ep")
    other = TupleDataset(local=make_mds(NUM_SAMPLES - 1, seed=3), shuffle=True, batch_size=BATCH_SIZE)
    batches = trainer.state.timestamp.batch
    with pytest.raises(ValueError, match="The scores belong to the streams"):
        trainer.fit(train_dataloader=DataLoader(other, batch_size=BATCH_SIZE), duration="2ep")
    assert trainer.state.timestamp.batch == batches


@pytest.mark.long
def test_a_bound_on_the_batches_of_an_epoch(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """What the bound leaves out is never measured, ranks first, and comes in later epochs."""
    ted = make_ted(0.6, folder=str(tmp_path))
    evaluation = DataLoader(TupleDataset(local=folder, batch_size=BATCH_SIZE), batch_size=BATCH_SIZE)
    trainer = make_trainer(
        folder,
        [ted],
        max_duration="5ep",
        train_subset_num_batches=7,
        eval_dataloader=evaluation,
        eval_interval="3ba",
    )
    trainer.fit()
    batches = [min(7, -(-kept // BATCH_SIZE)) for kept in kept_of(ted)]
    assert trainer.state.timestamp.batch == sum(batches)
    assert [record.forwarded for record in ted.records] == [min(kept, 7 * BATCH_SIZE) for kept in kept_of(ted)]
    assert [record.unmeasured for record in ted.records][:2] == [NUM_SAMPLES, NUM_SAMPLES - 7 * BATCH_SIZE]
    assert ted.save_ratio == 1 - sum(record.forwarded for record in ted.records) / (5 * NUM_SAMPLES)
    assert torch.isfinite(torch.cat([p.flatten() for p in trainer.state.model.parameters()])).all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("duration", "full_epochs"), [("78ba", 6), ("71ba", 5 + 6 / 13), ("606sp", 6), ("550sp", 5 + 45 / 101)]
)
def test_durations_of_a_full_run_are_planned_in_epochs(
    duration: str, full_epochs: float, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """13 batches and 101 samples are a full epoch; the last one is trained on in part."""
    ted = make_ted(0.6, annealing=0, folder=str(tmp_path))
    trainer = make_trainer(folder, [ted], max_duration=duration)
    trainer.fit()
    lengths = [-(-kept // BATCH_SIZE) for kept in planned(6, range(6), annealing=0)]
    share = full_epochs - 5
    lengths[-1] = round(lengths[-1] * share)
    assert kept_of(ted) == planned(6, range(6), annealing=0)
    assert trainer.state.timestamp.batch == sum(lengths)
    assert trainer.state.timestamp.epoch == 6
    forwarded = [record.forwarded for record in ted.records]
    assert forwarded[:-1] == kept_of(ted)[:-1]
    assert forwarded[-1] == min(kept_of(ted)[-1], lengths[-1] * BATCH_SIZE)
    assert ted.save_ratio == pytest.approx(1 - sum(forwarded) / (NUM_SAMPLES * full_epochs))
    assert ted.engine.plan.save_ratio == pytest.approx(ted.save_ratio, abs=BATCH_SIZE / (NUM_SAMPLES * 6))


@pytest.mark.long
def test_a_duration_in_batches_is_the_same_on_resume_and_counts_on_in_a_further_fit(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba", "save_overwrite": True}
    first = make_ted(0.6, annealing=0, folder=str(tmp_path))
    trainer = make_trainer(folder, [first], max_duration="71ba", run_name="run", **saving)
    trainer.fit()
    resumed = make_ted(0.6, annealing=0, folder=str(tmp_path))
    load = str(tmp_path / "checkpoints" / "ep3-ba30-rank0.pt")
    again = make_trainer(folder, [resumed], max_duration="71ba", run_name="run", load_path=load, **saving)
    again.fit()
    assert [record.digest for record in resumed.records] == [record.digest for record in first.records]
    assert again.state.timestamp.batch == trainer.state.timestamp.batch
    trainer.fit(duration="26ba")
    assert [record.epoch for record in first.records] == list(range(8))


@pytest.mark.long
def test_a_run_does_not_end_before_it_goes_on(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Where Composer does not see it: fewer batches have been trained on than the duration has, by pruning."""
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep"}
    first = make_ted(0.6, annealing=0, folder=str(tmp_path))
    trainer = make_trainer(folder, [first], max_duration="8ep", run_name="run", **saving)
    trainer.fit()
    (load,) = (tmp_path / "checkpoints").glob("ep8-*-rank0.pt")
    batches = trainer.state.timestamp.batch.value + 1
    again = make_trainer(
        folder, [make_ted(0.6, annealing=0, folder=str(tmp_path))], max_duration=f"{batches}ba", load_path=str(load)
    )
    with pytest.raises(ValueError, match=r"made after 8 epochs, but the run is to end after [4-7]: "):
        again.fit()


@pytest.mark.long
def test_a_last_epoch_is_not_shorter_than_what_is_done_of_it(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba", "run_name": "run"}
    trainer = make_trainer(folder, [make_ted(0.6, annealing=0, folder=str(tmp_path))], max_duration="4ep", **saving)
    trainer.fit()
    full = -(-NUM_SAMPLES // BATCH_SIZE)
    saved = (tmp_path / "checkpoints").glob("ep3-*-rank0.pt")
    load = max(saved, key=lambda path: int(path.name.split("-")[1].removeprefix("ba")))
    again = make_trainer(
        folder,
        [make_ted(0.6, annealing=0, folder=str(tmp_path))],
        max_duration=f"{3 * full + 1}ba",
        run_name="run",
        load_path=str(load),
    )
    with pytest.raises(ValueError, match=r"after 3 epochs and \d+ batches, but of its last epoch .* on 1, by max_"):
        again.fit()


@pytest.mark.long
def test_a_partial_duration_is_the_same_after_an_interruption(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Interrupt(Callback):
        def batch_start(self, state: State, logger: Any) -> None:
            if state.timestamp.batch == 20 and not interrupted:
                interrupted.append(1)
                raise KeyboardInterrupt

    interrupted: list[int] = []
    ted = make_ted(0.6, annealing=0, folder=str(tmp_path))
    trainer = make_trainer(folder, [ted], max_duration="71ba", callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit()
    whole = make_ted(0.6, annealing=0, folder=str(tmp_path / "whole"))
    make_trainer(folder, [whole], max_duration="71ba").fit()
    assert [record.kept for record in ted.records] == [record.kept for record in whole.records]
    assert ted.records[-1].forwarded == whole.records[-1].forwarded


@pytest.mark.long
@pytest.mark.parametrize(("duration", "warmup"), [("606sp", "101sp"), ("78ba", "13ba"), ("71ba", "6ba")])
def test_schedules_in_the_unit_of_the_duration(
    duration: str, warmup: str, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """The rate at every epoch's start is that of the full-data run."""

    def rates(algorithms: list[DataPruning]) -> list[float]:
        found: list[float] = []

        class Watch(Callback):
            def batch_start(self, state: State, logger: Any) -> None:
                if state.timestamp.batch_in_epoch == 1:
                    found.append(state.optimizers[0].param_groups[0]["lr"])
                if state.timestamp.batch_in_epoch == 0:
                    found.append(state.optimizers[0].param_groups[0]["lr"])

        schedule = CosineAnnealingWithWarmupScheduler(t_warmup=warmup)
        make_trainer(folder, algorithms, max_duration=duration, schedulers=schedule, callbacks=[Watch()]).fit()
        return found[::2]

    pruned = rates([make_ted(0.6, annealing=0, folder=str(tmp_path), progress="epochs")])
    assert pruned == pytest.approx(rates([]), abs=5e-3 if duration.endswith("sp") else 1e-9)  # uneven last batches
