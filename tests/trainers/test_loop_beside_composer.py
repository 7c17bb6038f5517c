"""A plain loop makes the lists and weights that Composer makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from loop_runs import EPOCHS, METHODS, NUM_SAMPLES, make_loader, make_net, outcome, train
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from ted_stream import DataPruning
from ted_stream.methods import Method


def composer_run(method: Method, folder: str, loader: DataLoader) -> dict[str, Any]:
    """The same run in Composer."""
    model = ComposerClassifier(make_net(dropout=0.0), num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruning = DataPruning(method, folder=folder)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        algorithms=[pruning],
        max_duration=f"{EPOCHS}ep",
        optimizers=optimizer,
        schedulers=CosineAnnealingLR(optimizer, EPOCHS * len(loader)),  # Composer's own lags by a batch
        step_schedulers_every_batch=True,
        device="cpu",
        seed=17,
        progress_bar=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    trainer.close()
    return outcome(pruning, model)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_makes_the_lists_and_weights_that_composer_makes(
    method: Method, kind: str, make_mds: Callable[..., str], tmp_path: Path
) -> None:
    data = make_mds(NUM_SAMPLES) if kind == "streaming" else None
    expected = composer_run(method, str(tmp_path / "composer"), make_loader(data))
    found = train(method, str(tmp_path / "loop"), loader=make_loader(data), dropout=0.0)
    assert min(found["kept"]) < NUM_SAMPLES
    assert found.pop("rate") == pytest.approx(0, abs=1e-12)
    assert found == expected
