"""What a run tells while it goes on: metrics for loggers, and a line per epoch."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.nn.functional as F
from loop_runs import METHODS, NUM_SAMPLES, make_loader, make_net

from ted_stream import InfoBatch, Pruner, RandomPruning
from ted_stream.engine import EpochRecord, pace
from ted_stream.engine.metrics import tell_epoch
from ted_stream.engine.pace import Pace
from ted_stream.methods import Method

EPOCHS = 4


def run(method: Method, folder: Path, **options: Any) -> tuple[Pruner, list[dict[str, float]]]:
    """A run of the loop, and the metrics of its epochs."""
    found, model = [], make_net()
    with Pruner(method, model, make_loader(), epochs=EPOCHS, folder=folder, **options) as pruner:
        assert pruner.metrics == {}
        for _ in pruner:
            for x, y in pruner.batches():
                pruner.loss(F.cross_entropy(model(x), y)).backward()
            found.append(pruner.metrics)
    return pruner, found


def changes(records: list[EpochRecord]) -> list[int]:
    """How many samples each epoch pruned that the one before had kept."""
    kept = [NUM_SAMPLES, *(record.kept for record in records)]
    return [before - record.kept + record.returning for before, record in zip(kept, records, strict=False)]


def test_metrics_of_a_loop(tmp_path: Path) -> None:
    pruner, found = run(METHODS["ted"], tmp_path)
    records = pruner.records

    def told(name: str) -> list[float]:
        return [metrics[f"pruning/{name}"] for metrics in found]

    assert told("keep_ratio") == [record.keep_ratio for record in records]
    assert told("kept_ratio") == [record.kept / NUM_SAMPLES for record in records]
    assert told("kept_samples") == [record.kept for record in records]
    assert told("returning_samples") == [record.returning for record in records]
    assert told("newly_pruned_samples") == changes(records)
    assert max(changes(records)) > 0
    forwarded = told("forwarded_samples")
    saved = [NUM_SAMPLES * (at + 1) - sum(forwarded[: at + 1]) for at in range(EPOCHS)]
    assert told("saved_samples") == saved
    assert told("save_ratio")[-1] == pytest.approx(saved[-1] / (NUM_SAMPLES * EPOCHS))
    assert told("planned_save_ratio") == [pruner.engine.plan.save_ratio] * EPOCHS
    per_sample = pruner.engine.pace.seconds_per_sample
    assert per_sample is not None
    assert told("estimated_saved_seconds")[-1] == pytest.approx(saved[-1] * per_sample)
    assert "pruning/score_q50" not in found[0]
    assert all(0 <= median < 10 for median in (metrics["pruning/score_q50"] for metrics in found[1:]))


def test_a_method_that_counts_by_itself_has_no_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ted_stream")
    _, found = run(InfoBatch(0.5), tmp_path)
    assert all("pruning/planned_save_ratio" not in metrics for metrics in found)
    assert "its own count" in caplog.messages[-1]
    assert "planned" not in caplog.messages[-1].replace("newly pruned", "")


def test_a_line_per_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ted_stream")
    pruner, _ = run(METHODS["random"], tmp_path)
    assert all(record.levelno == logging.INFO for record in caplog.records)
    lines = [re.sub(r"an estimated .*", "an estimated …", line) for line in caplog.messages]
    record, before = pruner.records[2], pruner.records[1]
    saved = 3 * NUM_SAMPLES - sum(other.forwarded for other in pruner.records[:3])
    planned = pruner.engine.plan.save_ratio
    assert len(lines) == EPOCHS
    assert lines[0].startswith(f"epoch 0 (1 of {EPOCHS}): RandomPruning kept {NUM_SAMPLES} of {NUM_SAMPLES} samples")
    assert "estimated" not in lines[0], "nothing is saved yet"
    assert lines[2] == (
        f"epoch 2 (3 of {EPOCHS}): RandomPruning kept {record.kept} of {NUM_SAMPLES} samples (ratio "
        f"{record.keep_ratio:.3f}, as planned), {record.returning} returned, "
        f"{before.kept - record.kept + record.returning} newly pruned; saved so far {saved / (3 * NUM_SAMPLES):.1%} of "
        f"the samples ({planned:.1%} planned for the run), an estimated …"
    )


def test_other_ranks_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pruner, _ = run(METHODS["random"], tmp_path)
    caplog.set_level(logging.INFO, logger="ted_stream")
    engine: Any = SimpleNamespace(**vars(pruner.engine), save_ratio=pruner.save_ratio)
    tell_epoch(engine)
    assert len(caplog.messages) == 1
    engine.ranks = SimpleNamespace(rank=1)
    tell_epoch(engine)
    assert len(caplog.messages) == 1


def test_a_run_that_goes_on_within_an_epoch_gives_no_estimate_until_it_has_seen_a_whole_one(tmp_path: Path) -> None:
    """Its first epoch's seconds are those of a part of its samples."""

    def loop(state: dict[str, Any] | None) -> tuple[dict[str, Any], list[dict[str, float]]]:
        model, found, saved = make_net(), [], {}
        with Pruner(RandomPruning(0.5), model, make_loader(), epochs=EPOCHS, folder=tmp_path, run_name="r") as pruner:
            if state is not None:
                pruner.load_state_dict(state)
            for epoch in pruner:
                for at, (x, y) in enumerate(pruner.batches()):
                    pruner.loss(F.cross_entropy(model(x), y)).backward()
                    if state is None and (epoch, at) == (1, 1):
                        saved = pruner.state_dict()
                        pruner.engine.release()
                        return saved, found
                found.append(pruner.metrics)
        return saved, found

    _, found = loop(loop(None)[0])
    assert len(found) == EPOCHS - 1
    assert "pruning/estimated_saved_seconds" not in found[0]
    assert found[0]["pruning/saved_samples"] > 0
    assert found[1]["pruning/estimated_saved_seconds"] > 0


def test_the_pace_is_that_of_the_fastest_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    one = Pace()

    def epoch(seconds: float, samples: int, evaluating: float = 0) -> float | None:
        one.begin()
        now[0] += seconds + evaluating
        one.leave_out(evaluating)
        one.end(samples)
        return one.seconds_per_sample

    assert epoch(30, 100) == 0.3  # compiles
    assert epoch(10, 100) == 0.1
    assert epoch(6, 50) == 0.1
    assert epoch(8, 100, evaluating=5) == pytest.approx(0.08)
    one.leave_out(100)  # between two epochs
    one.end(1000)  # of which nobody saw the beginning
    assert one.seconds_per_sample == pytest.approx(0.08)
    assert epoch(1, 0) == pytest.approx(0.08)
