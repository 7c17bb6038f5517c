"""Two ranks see a selection degenerate as one does, and hear of it once; as an error it ends both."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from guarded_runs import LINEAR, said, train

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("guarded_runs.py")


def test_two_ranks(launch: Callable[..., None], tmp_path: Path) -> None:
    launch(SCRIPT, tmp_path, ranks=2, launcher="torch")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        one, _ = train(LINEAR, tmp_path / "one")
    assert first["said"] == second["said"] == [[epoch, kinds] for epoch, kinds in said(one).items()]
    assert first["said"]
    assert first["digests"] == second["digests"] == [record.digest for record in one.records]
    assert first["scarce"] == second["scarce"] == [record.scarce_classes for record in one.records]
    assert len(first["heard"]) == 1
    assert "is frozen" in first["heard"][0]
    assert not second["heard"]
    kind, message = first["error"]
    assert kind == "SelectionWarning"
    assert message.startswith("None of the 600 measurements of epoch 0 is finite")
    assert second["error"] == ["RuntimeError", f"Rank 0 failed: SelectionWarning: {message}"]
