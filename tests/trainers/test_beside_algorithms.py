"""Pruning beside Composer's own algorithms: training, resuming in the middle of an epoch, and what a score means."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Algorithm, Callback, Event, State, Trainer
from composer.algorithms import (
    EMA,
    SAM,
    ChannelsLast,
    CutMix,
    GradientClipping,
    LabelSmoothing,
    LowPrecisionGroupNorm,
    LowPrecisionLayerNorm,
    MixUp,
    ProgressiveResizing,
)
from composer.models import ComposerClassifier
from small_run import BATCH_SIZE, TupleDataset, make_ted
from torch import nn

from ted_stream import DataPruning
from ted_stream.pruning.probe import StepProbe

NUM_SAMPLES = 83
EPOCHS = 4
NUM_CLASSES = 3

ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "MixUp": lambda: MixUp(alpha=1.0),
    "MixUp of losses": lambda: MixUp(alpha=1.0, interpolate_loss=True),
    "CutMix": lambda: CutMix(alpha=1.0),
    "CutMix of losses": lambda: CutMix(alpha=1.0, interpolate_loss=True),
    "LabelSmoothing": lambda: LabelSmoothing(0.1),
    "EMA": lambda: EMA(half_life="4ba"),
    "GradientClipping": lambda: GradientClipping("norm", 0.5),
    "ProgressiveResizing": lambda: ProgressiveResizing(initial_scale=0.5, finetune_fraction=0.3, size_increment=2),
    "ChannelsLast": ChannelsLast,
    "LowPrecisionLayerNorm": LowPrecisionLayerNorm,
    "LowPrecisionGroupNorm": LowPrecisionGroupNorm,
    "SAM": lambda: SAM(rho=0.1),
}


class ImageDataset(TupleDataset):
    def __getitem__(self, at: Any) -> Any:
        x, y = super().__getitem__(at)
        return np.stack([np.outer(x, np.roll(x, shift)) for shift in range(3)]).repeat(2, 1).repeat(2, 2), y


def make_model() -> ComposerClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Dropout(0.1),
        nn.Linear(32, NUM_CLASSES),
    )
    return ComposerClassifier(net, num_classes=NUM_CLASSES)


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


@pytest.fixture
def train(folder: str, make_trainer: Callable[..., Trainer]) -> Callable[..., tuple[DataPruning, Trainer]]:
    def train(
        others: list[Algorithm], out: Path, *, ted_first: bool = True, **arguments: Any
    ) -> tuple[DataPruning, Trainer]:
        site = arguments.pop("site", "features")
        ted = make_ted(0.6, site=site, folder=str(out))
        dataset = ImageDataset(local=folder, shuffle=True, batch_size=BATCH_SIZE)
        algorithms = [ted, *others] if ted_first else [*others, ted]
        model = make_model()
        # Composer does not restore what an optimizer under SAM remembers: see SAM's own warning.
        momentum = 0 if any(isinstance(other, SAM) for other in others) else 0.9
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=momentum)
        settings = {"max_duration": f"{EPOCHS}ep", "run_name": "run", "optimizers": optimizer} | arguments
        trainer = make_trainer(folder, algorithms, dataset=dataset, model=model, **settings)
        trainer.fit()
        trainer.close()
        return ted, trainer

    return train


def state_of(ted: DataPruning, trainer: Trainer) -> tuple[list[str], torch.Tensor, np.ndarray]:
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
    return [record.digest for record in ted.records], weights, ted.engine.scores()


@pytest.mark.quick("EMA")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_trains_and_resumes_beside(
    name: str, train: Callable[..., tuple[DataPruning, Trainer]], tmp_path: Path
) -> None:
    # Both runs save, since EMA puts its weights into the model where a checkpoint is due.
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "5ba", "save_overwrite": True}
    digests, weights, scores = state_of(*train([ALGORITHMS[name]()], tmp_path, **saving))
    assert len(set(digests)) == EPOCHS
    assert np.isfinite(scores).all()
    # In the middle of epoch 1; the algorithms' order in the list makes no difference.
    checkpoint = str(tmp_path / "checkpoints" / "ep1-ba15-rank0.pt")
    resumed = state_of(*train([ALGORITHMS[name]()], tmp_path, ted_first=False, load_path=checkpoint, **saving))
    assert resumed[0] == digests
    assert torch.equal(resumed[1], weights)
    assert np.array_equal(resumed[2], scores)


class Blends(Callback):
    """What every row of every batch scores, from the outputs and the blended targets, by the formula for `output`."""

    def __init__(self, blend: MixUp | CutMix) -> None:
        self.blend = blend
        self.expected: list[torch.Tensor] = []

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        if event == Event.BEFORE_FORWARD:  # before a blend of targets replaces them
            self.targets = F.one_hot(state.batch[1], NUM_CLASSES).float()
        if event == Event.AFTER_BACKWARD:
            if isinstance(self.blend, MixUp):
                own, others = 1 - self.blend.mixing, self.blend.permuted_target
            else:
                own, others = self.blend._adjusted_lambda, self.blend._permuted_target
            other = F.one_hot(others, NUM_CLASSES)
            targets = own * self.targets + (1 - own) * other
            outputs = cast(torch.Tensor, state.outputs).detach()
            self.expected.append((outputs * (outputs.softmax(1) - targets)).sum(1).abs())


@pytest.mark.long
@pytest.mark.parametrize("ted_first", [False, True])
@pytest.mark.parametrize("interpolate_loss", [False, True])
@pytest.mark.parametrize("blend", [MixUp, CutMix])
def test_a_blended_row_scores_as_what_the_model_was_shown(
    blend: Any,
    interpolate_loss: bool,
    ted_first: bool,
    train: Callable[..., tuple[DataPruning, Trainer]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A score is |∂ℓ/∂δ| of the row's own blended loss, and goes to the sample in that row, whatever the order."""
    measured: list[torch.Tensor] = []
    read = StepProbe.after_backward

    def record(self: StepProbe) -> torch.Tensor | None:
        values = read(self)
        assert values is not None
        measured.append(values)
        return values

    monkeypatch.setattr(StepProbe, "after_backward", record)
    other = blend(alpha=1.0, interpolate_loss=interpolate_loss)
    blends = Blends(other)
    train(
        [other],
        tmp_path,
        ted_first=ted_first,
        site="output",
        callbacks=[blends],
        max_duration="2ep",
        device_train_microbatch_size=3,
    )
    torch.testing.assert_close(torch.cat(measured), torch.cat(blends.expected), rtol=1e-4, atol=1e-6)
