"""What a training step must not suffer from being measured, and what measurements must not suffer from the step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Algorithm, Event, State, Trainer
from composer.models import ComposerClassifier
from small_run import BATCH_SIZE, TupleDataset, make_model, make_ted
from torch import Tensor, nn

from ted_stream import TED, DataPruning
from ted_stream.engine import StepRecorder
from ted_stream.pruning.probe import StepProbe
from ted_stream.pruning.sample_ids import take_sample_ids

NUM_SAMPLES = 61


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
    method = TED(0.5, importance="loss") if importance == "loss" else TED(0.5, site=site)
    probe = StepProbe(method.measure())
    probe.attach(model)
    step = StepRecorder(probe)
    step.weigh(None, 2.0)
    batch, taken = take_sample_ids((inputs, targets, ids), bare=False)
    step.begin(taken)
    batch = step.before_forward(batch)
    logits, labels = model(batch[0]), batch[1]
    outputs = logits
    if language:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = F.cross_entropy(logits, labels)
    step.before_backward(batch, outputs, loss)
    loss.backward()
    step.after_backward()
    step.commit(2)
    with pytest.raises(RuntimeError, match="meta"):
        step.measurements()  # the only place that looks


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


@pytest.mark.long
def test_a_batch_tried_again_after_running_out_of_memory_counts_once(
    folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def run(model: ComposerClassifier, auto: bool) -> DataPruning:
        ted = make_ted(0.6, folder=str(tmp_path / str(auto)))
        trainer = make_trainer(folder, [ted], model=model, device_train_microbatch_size=4, max_duration="4ep")
        trainer.state.auto_microbatching = auto  # Composer lets one ask for it on a GPU alone
        trainer.fit()
        return ted

    model = OutOfMemoryOnce()
    expected, found = run(make_model(), False), run(model, True)
    assert model.failures == 1
    assert [record.forwarded for record in found.records] == [record.kept for record in found.records]
    assert [record.digest for record in found.records] == [record.digest for record in expected.records]
    np.testing.assert_allclose(found.engine.scores(), expected.engine.scores(), rtol=1e-4)


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
    ted = make_ted(0.6, folder=str(tmp_path))
    make_trainer(folder, [ted, Overflow()], max_duration="3ep").fit()
    assert [record.non_finite for record in ted.records] == [BATCH_SIZE] * 3
    assert [record.forwarded for record in ted.records] == [record.kept for record in ted.records]
    # Who was never measured is kept until it is.
    assert [record.unmeasured for record in ted.records] == [NUM_SAMPLES, BATCH_SIZE, 0]
    assert np.isfinite(ted.engine.scores()).all()


@pytest.mark.long
@pytest.mark.parametrize("site", ["input", "features", "output"])
def test_a_compiled_model_scores_as_a_plain_one(
    site: str, folder: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def run(name: str, **arguments: Any) -> DataPruning:
        torch.compiler.reset()
        ted = make_ted(0.6, site=site, folder=str(tmp_path / name))
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
    np.testing.assert_allclose(compiled.engine.scores(), plain.engine.scores(), rtol=1e-4)
