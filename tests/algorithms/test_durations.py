"""Runs whose length changes: extended on resume, in several fits, cut short in every epoch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composer import Trainer
from small_run import BATCH_SIZE, TupleDataset
from torch.utils.data import DataLoader

from ted_stream import TED

NUM_SAMPLES = 101


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


def kept_of(ted: TED) -> list[int]:
    return [record.kept for record in ted.records]


def planned(num_epochs: int, epochs: range) -> list[int]:
    schedule = TED(0.6).schedule
    return [schedule.num_kept(epoch, num_epochs, NUM_SAMPLES) for epoch in epochs]


@pytest.mark.parametrize("checkpoint", ["ep2-ba22", "ep3-ba29", "latest"])
def test_a_longer_max_duration_on_resume_replans_the_epochs_to_come(
    checkpoint: str, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """An epoch that has started keeps its list; the ones after it follow the schedule of the new length."""
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba", "save_overwrite": True}
    first = TED(0.6, folder=str(tmp_path))
    make_trainer(folder, [first], max_duration="4ep", run_name="run", **saving).fit()
    assert kept_of(first) == planned(4, range(4))
    load = tmp_path / "checkpoints" / f"{checkpoint}-rank0.pt"
    extended = TED(0.6, folder=str(tmp_path))
    trainer = make_trainer(folder, [extended], max_duration="8ep", run_name="run", load_path=str(load), **saving)
    started = trainer.state.timestamp.epoch.value + (trainer.state.timestamp.batch_in_epoch > 0)
    trainer.fit()
    assert kept_of(extended) == kept_of(first)[:started] + planned(8, range(started, 8))
    assert [record.digest for record in extended.records][:started] == [r.digest for r in first.records][:started]
    assert [record.forwarded for record in extended.records] == kept_of(extended)


def test_several_fits_go_on_with_scores_and_lists(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    ted = TED(0.6, folder=str(tmp_path))
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
    trainer = make_trainer(folder, [TED(0.6, folder=str(tmp_path))], max_duration=None)
    trainer.fit(duration="2ep")
    other = TupleDataset(local=make_mds(NUM_SAMPLES - 1, seed=3), shuffle=True, batch_size=BATCH_SIZE)
    batches = trainer.state.timestamp.batch
    with pytest.raises(ValueError, match="The scores belong to the streams"):
        trainer.fit(train_dataloader=DataLoader(other, batch_size=BATCH_SIZE), duration="2ep")
    assert trainer.state.timestamp.batch == batches


def test_a_bound_on_the_batches_of_an_epoch(folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """What the bound leaves out is never measured, ranks first, and comes in later epochs."""
    ted = TED(0.6, folder=str(tmp_path))
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
