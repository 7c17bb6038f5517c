"""What a training step must not suffer from being measured, and what measurements must not suffer from the step."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Algorithm, Event, State, Trainer
from composer.core import Timestamp
from composer.models import ComposerClassifier
from small_run import BATCH_SIZE, TupleDataset, make_model
from torch import Tensor, nn

from ted_stream import TED

NUM_SAMPLES = 61
STEP = [
    Event.AFTER_DATALOADER,
    Event.BATCH_START,
    Event.BEFORE_TRAIN_BATCH,
    Event.BEFORE_FORWARD,
    "forward",
    Event.BEFORE_BACKWARD,
    "backward",
    Event.AFTER_BACKWARD,
    Event.BATCH_END,
]


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


class NextToken(nn.Module):
    shift_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize("importance", ["mask_gradient", "loss"])
@pytest.mark.parametrize("site", ["input", "features", "output"])
@pytest.mark.parametrize("language", [False, True])
def test_no_step_waits_for_the_device(language: bool, site: str, importance: str) -> None:
    """On the meta device, whose tensors hold no values: to look at one is an error."""
    with torch.device("meta"):
        ids = torch.zeros(BATCH_SIZE, dtype=torch.int32)
        if language:
            model: nn.Module = NextToken()
            inputs, targets = (torch.zeros(BATCH_SIZE, 5, dtype=torch.int64) for _ in range(2))
        else:
            model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
            inputs, targets = torch.zeros(BATCH_SIZE, 6), torch.zeros(BATCH_SIZE, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="meta"):
        ids[0].item()  # as said
    ted = TED(0.5, site=site, importance=importance)
    assert ted.importance is not None
    ted.importance.attach(model)
    ted._active = cast(Any, SimpleNamespace(keep_ratio=0.5))
    ted._stretcher = cast(Any, SimpleNamespace(before_batch=lambda state: None, after_batch=lambda state: None))
    timestamp = Timestamp(epoch=1, batch=12, batch_in_epoch=2)
    state = cast(State, SimpleNamespace(batch=(inputs, targets, ids), timestamp=timestamp))
    for event in STEP:
        if event == "forward":
            state.outputs = model(state.batch[0])
            logits, labels = cast(Tensor, state.outputs), state.batch[1]
            if language:
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            state.loss = F.cross_entropy(logits, labels)
        elif event == "backward":
            cast(Tensor, state.loss).backward()
        else:
            ted.apply(cast(Event, event), state, cast(Any, None))
    assert [len(part) for part in ted._epoch_ids] == [len(part) for part in ted._epoch_importance] == [BATCH_SIZE]


class OutOfMemoryOnce(ComposerClassifier):
    """Runs out of memory in the last microbatch of one batch."""

    def __init__(self) -> None:
        super().__init__(make_model().module, num_classes=3)
        self.failures = 0
        self.rows = 0

    def forward(self, batch: Any) -> Tensor:
        self.rows += len(batch[0])
        # Epoch 0: the third batch, once its first microbatch has been measured.
        if self.training and self.rows == 3 * BATCH_SIZE and self.failures == 0:
            self.failures += 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(batch)


def test_a_batch_tried_again_after_running_out_of_memory_counts_once(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def run(model: ComposerClassifier, auto: bool) -> TED:
        ted = TED(0.6, folder=str(tmp_path / str(auto)))
        trainer = make_trainer(folder, [ted], model=model, device_train_microbatch_size=4, max_duration="4ep")
        trainer.state.auto_microbatching = auto  # Composer lets one ask for it on a GPU alone
        trainer.fit()
        return ted

    model = OutOfMemoryOnce()
    expected, found = run(make_model(), False), run(model, True)
    assert model.failures == 1
    assert [record.forwarded for record in found.records] == [record.kept for record in found.records]
    assert [record.digest for record in found.records] == [record.digest for record in expected.records]
    assert found._store is not None
    assert expected._store is not None
    np.testing.assert_allclose(found._store.scores, expected._store.scores, rtol=1e-4)


class Overflow(Algorithm):
    """Makes the loss overflow in one step of every epoch, and keeps the weights out of it."""

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BEFORE_BACKWARD, Event.AFTER_TRAIN_BATCH) and state.timestamp.batch_in_epoch == 2

    def apply(self, event: Event, state: State, logger: Any) -> None:
        if event == Event.BEFORE_BACKWARD:
            state.loss = cast(Tensor, state.loss) * float("inf")
        else:
            for parameter in state.model.parameters():
                parameter.grad = None


def test_overflown_measurements_are_dropped_and_counted(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    ted = TED(0.6, folder=str(tmp_path))
    make_trainer(folder, [ted, Overflow()], max_duration="3ep").fit()
    assert [record.non_finite for record in ted.records] == [BATCH_SIZE] * 3
    assert [record.forwarded for record in ted.records] == [record.kept for record in ted.records]
    # Who was never measured is kept until it is.
    assert [record.unmeasured for record in ted.records] == [NUM_SAMPLES, BATCH_SIZE, 0]
    assert ted._store is not None
    assert np.isfinite(ted._store.scores).all()


@pytest.mark.parametrize("site", ["input", "features", "output"])
def test_a_compiled_model_scores_as_a_plain_one(
    site: str, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def run(name: str, **arguments: Any) -> TED:
        torch.compiler.reset()
        ted = TED(0.6, site=site, folder=str(tmp_path / name))
        evaluation = torch.utils.data.DataLoader(TupleDataset(local=folder, batch_size=BATCH_SIZE), BATCH_SIZE)
        trainer = make_trainer(folder, [ted], eval_dataloader=evaluation, **arguments)
        trainer.eval()  # compiles the model without a mask
        trainer.fit(duration="2ep")
        trainer.fit(duration="2ep")
        return ted

    # Traces and differentiates as any backend would, and runs the result without a C++ compiler.
    compiled = run("compiled", compile_config={"backend": "aot_eager"})
    plain = run("plain")
    assert [record.digest for record in compiled.records] == [record.digest for record in plain.records]
    assert compiled._store is not None
    assert plain._store is not None
    np.testing.assert_allclose(compiled._store.scores, plain._store.scores, rtol=1e-4)
