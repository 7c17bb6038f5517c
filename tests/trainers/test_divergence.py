"""A run that measures nothing finite any more says so within the epoch; a gradient scaler's overflows pass."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from guarded_runs import BATCH_SIZE, said, train
from loop_runs import features
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import TED, ImportanceSampling, PrunedSampler, SelectionWarning
from ted_stream.methods import Method

BATCHES = 57  # of an epoch of all 1797 digits


def all_digits() -> TensorDataset:
    pixels, classes = load_digits(return_X_y=True)
    return TensorDataset((torch.from_numpy(pixels).double() - 4.9) / 6, torch.from_numpy(classes).long())


class Breaks:
    """A loss that is no number in some of the run's batches, and counts them."""

    def __init__(self, breaks: Callable[[int], bool]) -> None:
        self.breaks, self.batches = breaks, 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, targets)
        self.batches += 1
        return loss * torch.nan if self.breaks(self.batches - 1) else loss


def selection_warnings(heard: list[warnings.WarningMessage]) -> list[str]:
    """The files that are shown for them."""
    return [Path(each.filename).name for each in heard if issubclass(each.category, SelectionWarning)]


def keeps_its_weights(model: nn.Module) -> nn.Module:
    """What a gradient scaler does, which leaves out the steps that overflow."""
    for parameter in model.parameters():
        parameter.register_hook(torch.nan_to_num)
    return model


@pytest.mark.parametrize(
    ("method", "later"),
    [(TED(0.1), 0), (TED(0.1, importance="loss"), 1), (ImportanceSampling(0.1), 1)],  # of logits, the batch after
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("breaks", [0, 13, BATCHES + 5])
def test_it_is_said_within_the_epoch(breaks: int, method: Method, later: int, tmp_path: Path) -> None:
    loss = Breaks(lambda batch: batch == breaks)  # once, and the weights are no numbers any more
    first = breaks + later
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The loss of the first microbatch is nan")
        warnings.simplefilter("error", SelectionWarning)
        with pytest.raises(SelectionWarning, match="None of the") as error:
            train(method, tmp_path, dataset=all_digits(), loss_of=loss, epochs=3)
    last = loss.batches - 1
    assert 24 <= last - first <= 40
    epoch, batch = divmod(first, BATCHES)
    batches = last - first + 1
    told = f"None of the {batches * BATCH_SIZE} measurements of the last {batches} batches is finite, from batch"
    assert str(error.value).startswith(f"{told} {batch} of epoch {epoch} on: the loss has diverged")
    assert "lower learning rate" in str(error.value)


@pytest.mark.long
def test_once_and_nothing_follows(tmp_path: Path) -> None:
    """Shown at the line that trains, noted in the record of its epoch, and not said again after a resumption."""
    loss = Breaks(lambda batch: batch == BATCHES + 5)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        run, state = train(TED(0.1), tmp_path, dataset=all_digits(), loss_of=loss, epochs=4, stop=2)
        assert selection_warnings(heard) == ["guarded_runs.py"]
        assert said(run) == {1: ["diverged"]}
        run, _ = train(TED(0.1), tmp_path, dataset=all_digits(), epochs=4, state=state)
    assert said(run) == {1: ["diverged"]}
    assert selection_warnings(heard) == ["guarded_runs.py"]
    rows = json.loads((tmp_path / "run.json").read_text())["epochs"]
    assert [row["warnings"] for row in rows] == [[], ["diverged"], [], []]


@pytest.mark.parametrize(
    "breaks",
    [
        lambda batch: batch < 17,
        lambda batch: batch % 24 != 23,
        lambda batch: 24 <= batch < 40,
        lambda batch: 16 <= batch < 40,  # a whole window, which has passed when the device's answer is read
    ],
    ids=["a scale that is found", "steps that overflow", "in the middle", "longer, and back"],
)
def test_steps_that_overflow_are_none_to_warn_of(breaks: Callable[[int], bool], tmp_path: Path) -> None:
    within = []  # before each batch
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        loss = Breaks(lambda batch: within.append(selection_warnings(heard)) or breaks(batch))
        train(TED(0.1), tmp_path, dataset=all_digits(), loss_of=loss, wrap=keeps_its_weights, epochs=1)
    assert within == [[]] * BATCHES


def small_loader() -> DataLoader:
    """Batches of one sample, more of them in an epoch than a window has."""
    x, y = features()
    dataset = TensorDataset(x * torch.nan, y)
    return DataLoader(dataset, batch_size=1, sampler=PrunedSampler(dataset))


def test_in_composer(tmp_path: Path) -> None:
    from composer_runs import composer_run

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The loss of the first microbatch is nan")
        warnings.simplefilter("error", SelectionWarning)
        with pytest.raises(SelectionWarning, match="from batch 0 of epoch 0 on"):
            composer_run(TED(0.1), str(tmp_path), small_loader())


def test_in_hugging_faces_trainer(tmp_path: Path) -> None:
    from hf_runs import Dicts, make_trainer

    dataset = Dicts()
    dataset.x *= torch.nan
    trainer = make_trainer(TED(0.1), str(tmp_path), dataset=dataset, per_device_train_batch_size=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The loss of the first microbatch is nan")
        warnings.simplefilter("error", SelectionWarning)
        with pytest.raises(SelectionWarning, match="from batch 0 of epoch 0 on"):
            trainer.train()
    assert trainer.state.global_step < 40
