"""Learning rates by the sizes of samples: they only advance, and a run that goes on has those of one that was whole."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_runs import train as hf_train
from loop_runs import EPOCHS, METHODS, NUM_SAMPLES, SIZES, make_loader, make_net, train

from ted_stream import TED, Pruner, read_skip_list
from ted_stream.engine import EpochRecord, Progress, checked_progress
from ted_stream.engine.plan import RunPlan

RECORD: dict[str, Any] = {"keep_ratio": 0.5, "returning": 0, "unmeasured": 0, "skip_list": "", "digest": ""}


def _progress(plan: RunPlan) -> Progress:
    return checked_progress(SIZES.tolist(), plan)


def test_what_was_left_behind_does_not_move() -> None:
    """However large the samples are that an epoch turns out to keep, and to the bit to the end."""
    plan = RunPlan(method=TED(0.5), num_samples=NUM_SAMPLES, epochs=7, last_share=0.5)
    progress, records, last = _progress(plan), [], 0.0
    for epoch in range(7):
        before = progress.positions(plan, records, 100)(epoch, 0, 13)
        kept: Any = plan.kept(epoch)
        size = int(SIZES.max() * kept if epoch % 2 else kept)
        records.append(EpochRecord(epoch=epoch, kept=kept, kept_size=size, **RECORD))
        position = progress.positions(plan, records, 100)
        found = [position(epoch, done, 13) for done in range(14)]
        assert found[0] == before == last
        assert np.all(np.diff(found) > 0)
        last = found[-1]
    assert last == progress.positions(plan, records, 100)(7, 0, 13) == 650


def test_equal_sizes_are_samples() -> None:
    plan = RunPlan(method=TED(0.5), num_samples=NUM_SAMPLES, epochs=5)
    kept: list[Any] = [plan.kept(epoch) for epoch in range(5)]
    records = [EpochRecord(epoch=epoch, kept=count, kept_size=3 * count, **RECORD) for epoch, count in enumerate(kept)]
    by_samples, by_sizes = (
        checked_progress(given, plan).positions(plan, records, 90) for given in ("samples", [3] * NUM_SAMPLES)
    )
    for epoch in range(5):
        for done in range(8):
            assert by_sizes(epoch, done, 8) == pytest.approx(by_samples(epoch, done, 8), rel=1e-12)


def test_a_loop_goes_on_to_the_bit(tmp_path: Path) -> None:
    saved: dict[int, Any] = {}

    def save(batch: int, state: Callable[[], dict[str, Any]]) -> None:
        saved[batch] = copy.deepcopy(state())

    def run(**settings: Any) -> dict[str, Any]:
        return train(METHODS["ted"], str(tmp_path), pruner_options={"progress": SIZES}, **settings)

    expected = run(after_batch=save)
    assert expected["rate"] == pytest.approx(0, abs=1e-12)
    for batch in (1, 13, 14, 20, max(saved)):
        assert run(resume=saved[batch]) == expected


def test_the_trainer_of_hugging_face_goes_on_to_the_bit(tmp_path: Path) -> None:
    options = {"pruning_progress": SIZES}
    expected = hf_train(METHODS["ted"], str(tmp_path), options=options, save_strategy="steps", save_steps=5)
    resumed = hf_train(METHODS["ted"], str(tmp_path), options=options, resume=str(tmp_path / "checkpoint-15"))
    assert resumed == expected


def test_from_samples_to_sizes_all_epochs_are_sized(tmp_path: Path) -> None:
    states = []
    train(METHODS["ted"], str(tmp_path), after_batch=lambda batch, state: states.append(copy.deepcopy(state())))
    state = states[22]["pruner"]
    options: dict[str, Any] = {"epochs": EPOCHS, "folder": tmp_path, "progress": SIZES}
    with pytest.raises(ValueError, match=r"progress='samples'.*progress='sizes [0-9a-f]{12}'"):
        Pruner(METHODS["ted"], make_net(), make_loader(), **options).load_state_dict(state)
    pruner = Pruner(METHODS["ted"], make_net(), make_loader(), **options, allow_other_settings=True)
    pruner.load_state_dict(state)
    assert len(pruner.records) > 1
    for record in pruner.records:
        kept = read_skip_list(tmp_path / record.skip_list).kept_ids()
        assert record.kept_size == SIZES[kept].sum(), asdict(record)
