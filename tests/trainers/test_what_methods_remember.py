"""Classes, credits and what is known before a run, in whole runs of a loop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from referenced import Referenced
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import PrunedSampler, Pruner, RandomPruning
from ted_stream.methods import RCAP, Composed, Learnability, Method

N, EPOCHS = 60, 6


def loader_of(labels: Tensor) -> DataLoader:
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(N, 5), labels)
    return DataLoader(dataset, batch_size=8, sampler=PrunedSampler(dataset, seed=1))


def train(
    method: Method,
    labels: Tensor,
    folder: Path,
    *,
    stop: tuple[int, int] | None = None,
    state: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Pruner, dict[str, Any] | None]:
    """A run, or the part of one up to a batch of an epoch, and its state there."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(method, model, loader_of(labels), epochs=EPOCHS, folder=folder, **settings)
    if state is not None:
        model.load_state_dict(state["model"])
        pruner.load_state_dict(state["pruner"])
    with pruner:
        for epoch in pruner:
            for batch, (x, y) in enumerate(pruner.batches()):
                pruner.loss(cross_entropy(model(x), y)).backward()
                optimizer.step()
                optimizer.zero_grad()
                if stop == (epoch, batch):
                    return pruner, {"model": model.state_dict(), "pruner": pruner.state_dict()}
    return pruner, None


LABELS = torch.arange(N) * 7 % 4
METHODS = [
    RCAP(0.7),
    RandomPruning(0.7, coverage="even", class_shares="equal"),
    Composed(0.7, choice="even", clip_chance=True, class_shares="sqrt", weights="inverse_probability", floor=0.1),
    Referenced(0.7, reference="none.parquet"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(
    "stop", [pytest.param((2, 0), marks=pytest.mark.long), (2, 1), pytest.param((4, 1), marks=pytest.mark.long)]
)
def test_goes_on_to_the_bit(method: Method, stop: tuple[int, int], tmp_path: Path) -> None:
    """In the middle of an epoch too, where the choice's columns are not in force yet."""
    whole, _ = train(method, LABELS, tmp_path / "whole")
    _, state = train(method, LABELS, tmp_path / "part", stop=stop)
    assert state is not None
    torch.save(state, tmp_path / "state.pt")
    again, _ = train(method, LABELS, tmp_path / "part", state=torch.load(tmp_path / "state.pt"))
    assert [record.digest for record in again.engine.records] == [record.digest for record in whole.engine.records]
    for name, column in whole.engine.store.columns.items():
        assert np.array_equal(column, again.engine.store.columns[name], equal_nan=True), name
    if method.needs_labels:
        assert whole.engine.store.labels is not None
        assert whole.engine.store.labels.tolist() == LABELS.tolist()


def test_labels_are_those_of_the_samples(tmp_path: Path) -> None:
    """Also where none has one (-100), and from a batch's first epoch on."""
    labels = LABELS.clone()
    labels[::5] = -100
    run, _ = train(RandomPruning(0.5, class_shares="equal"), labels, tmp_path)
    assert run.engine.store.labels is not None
    assert run.engine.store.labels.tolist() == labels.clamp(min=-1).tolist()


def test_mixed_classes_are_refused_in_the_first_batch(tmp_path: Path) -> None:
    dataset = TensorDataset(torch.randn(N, 5), torch.rand(N, 4))
    loader = DataLoader(dataset, batch_size=8, sampler=PrunedSampler(dataset))
    model = nn.Linear(5, 4)
    with Pruner(RCAP(0.5), model, loader, epochs=4, folder=tmp_path) as pruner:
        for _ in pruner:
            for x, y in pruner.batches():
                with pytest.raises(ValueError, match=r"targets have shape \(8, 4\).*one whole number for each"):
                    pruner.loss(cross_entropy(model(x), y))
                return


def refuse(
    dataset: torch.utils.data.Dataset, told: str, folder: Path, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
) -> None:
    """A run whose classes are balanced ends with a ValueError that says so."""
    loader = DataLoader(dataset, batch_size=8, sampler=PrunedSampler(dataset))
    model = nn.Linear(5, 4)

    def run() -> None:
        with Pruner(RandomPruning(0.1, class_shares="equal"), model, loader, epochs=8, folder=folder) as pruner:
            for _ in pruner:
                for x, y in pruner.batches():
                    pruner.loss(loss(model(x), y)).backward()

    with pytest.raises(ValueError, match=told):
        run()


@pytest.mark.parametrize("wrong", [-1, -7, 1 << 31])
def test_classes_that_are_not_numbered_from_zero_are_refused(wrong: int, tmp_path: Path) -> None:
    """-1 and 1 would be one class and none."""
    dataset = TensorDataset(torch.randn(N, 5), torch.where(torch.arange(N) % 2 == 0, wrong, 1))
    told = rf"30 class targets lie outside \[0, 2\^31\), for example \[{wrong}"
    refuse(dataset, told, tmp_path, lambda outputs, y: cross_entropy(outputs, (y > 0).long()))


class Relabelled(torch.utils.data.Dataset):
    """Another class at every read."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.full((5,), at / N), (at + self.reads // (2 * N)) % 4


def test_labels_that_change_are_refused(tmp_path: Path) -> None:
    refuse(Relabelled(), "samples had another class than before", tmp_path)


class Revised(Referenced):
    """Other reference losses under the same name."""

    def given(self, layout: Any) -> Mapping[str, Any]:
        return {"reference": super().given(layout)["reference"] + 1}

    def __repr__(self) -> str:
        return super().__repr__().replace("Revised", "Referenced")


def test_a_run_goes_on_with_the_reference_that_it_had(tmp_path: Path) -> None:
    _, state = train(Referenced(0.7, reference="none.parquet"), LABELS, tmp_path, stop=(3, 1))
    with pytest.raises(ValueError, match="another than when the checkpoint was made"):
        train(Revised(0.7, reference="none.parquet"), LABELS, tmp_path, state=state)


class Short(Referenced):
    """A reference loss too few."""

    def given(self, layout: Any) -> Mapping[str, Any]:
        return {"reference": super().given(layout)["reference"][1:]}


def test_what_is_given_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'reference' as shape \(59,\).*\(60,\) float32"):
        train(Short(0.7, reference="none.parquet"), LABELS, tmp_path)
    with pytest.raises(OSError, match=r"none\.parquet"):
        train(Learnability(0.7, reference=str(tmp_path / "none.parquet")), LABELS, tmp_path)
