"""Runs in Composer on the model, data and seed of loop_runs.py."""

from typing import Any

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from loop_runs import EPOCHS, make_net, outcome
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from ted_stream import DataPruning
from ted_stream.methods import Method


def composer_run(method: Method, folder: str, loader: DataLoader, microbatch_size: int | None = None) -> dict[str, Any]:
    """The run of `loop_runs.train` in Composer."""
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
        device_train_microbatch_size=microbatch_size,
        device="cpu",
        seed=17,
        progress_bar=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    trainer.close()
    return outcome(pruning, model)
