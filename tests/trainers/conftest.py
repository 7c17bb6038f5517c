"""A small training run that the tests of this folder share."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from composer import Algorithm, Callback, Trainer
from composer.models import ComposerClassifier
from small_run import BATCH_SIZE, TupleDataset, make_model
from torch.utils.data import DataLoader


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """A function that builds a Trainer over a folder of samples; keyword arguments go to the Trainer."""

    def make(
        folder: str,
        algorithms: Sequence[Algorithm] = (),
        *,
        callbacks: Sequence[Callback] = (),
        workers: int = 0,
        model: ComposerClassifier | None = None,
        dataset: Any = None,
        dataloader: Any = None,
        learning_rate: float = 0.1,
        **arguments: Any,
    ) -> Trainer:
        model = model or make_model()
        dataset = dataset or TupleDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
        dataloader = dataloader or DataLoader(
            dataset, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0
        )
        settings: dict[str, Any] = {
            "max_duration": "6ep",
            "optimizers": torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9),
            "device": "cpu",
            "seed": 17,
            "progress_bar": False,
            "auto_log_hparams": False,
        }
        return Trainer(
            model=model,
            train_dataloader=dataloader,
            algorithms=list(algorithms),
            callbacks=list(callbacks),
            **(settings | arguments),
        )

    return make
