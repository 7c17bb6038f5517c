"""A run that is cut off and goes on ends as the run that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.optim import CosineAnnealingScheduler
from small_run import BATCH_SIZE

from ted_stream import TED

NUM_SAMPLES = 131
EPOCHS = 6


@pytest.fixture
def run(make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Any]:
    data = make_mds(NUM_SAMPLES)

    def run(interval: str = "1ba", load: Path | None = None) -> Any:
        ted = TED(0.6, relative=True, folder=str(tmp_path))
        trainer = make_trainer(
            data,
            [ted],
            max_duration=f"{EPOCHS}ep",
            schedulers=CosineAnnealingScheduler(),
            save_folder=None if load else str(tmp_path / "checkpoints"),
            save_interval=interval,
            load_path=None if load is None else str(load),
            run_name="run",
        )
        trainer.fit()
        trainer.close()
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
        assert ted._store is not None
        records = [(record.digest, record.forwarded, record.returning) for record in ted.records]
        return records, weights, ted._store.gather()

    return run


@pytest.mark.parametrize("interval", ["1ba", "1ep"])
def test_resuming_from_any_checkpoint_changes_nothing(interval: str, run: Callable[..., Any], tmp_path: Path) -> None:
    records, weights, scores = run(interval)
    found = {path.name.removesuffix("-rank0.pt"): path for path in (tmp_path / "checkpoints").glob("ep*-rank0.pt")}
    names = sorted(found, key=lambda name: int(name.split("-ba")[1]))
    assert len(names) == (EPOCHS if interval == "1ep" else records_to_batches(records))
    # Epoch 0 has 17 batches: resume after its last one as well, when nothing of the epoch is left to read.
    chosen = names[:-1] if interval == "1ep" else ["ep0-ba17", *names[3::11]]
    for name in chosen:
        resumed_records, resumed_weights, resumed_scores = run(load=found[name])
        assert resumed_records == records, name
        assert torch.equal(resumed_weights, weights), name
        assert np.array_equal(resumed_scores, scores), name


def records_to_batches(records: list[tuple[str, int, int]]) -> int:
    return sum(-(-forwarded // BATCH_SIZE) for _, forwarded, _ in records)
