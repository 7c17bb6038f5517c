"""The method that the methods' README writes trains, and keeps the contract."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from composer.models import ComposerClassifier
from torch.utils.data import DataLoader, TensorDataset

import ted_stream.methods
from ted_stream import PrunedSampler, read_skip_list
from ted_stream.testing import METHOD_CHECKS

TEXT = (Path(ted_stream.methods.__file__).parent / "README.md").read_text()
METHOD, TRAINING, CHECKING = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The README's file."""
    (tmp_path / "least_certain.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("least_certain")
    del sys.modules["least_certain"]


def digits(num_samples: int) -> TensorDataset:
    """8 × 8 images of ten classes: a pattern each, and noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 64, generator=generator)
    labels = torch.randint(10, (num_samples,), generator=generator)
    return TensorDataset(patterns[labels] + 0.5 * torch.randn(num_samples, 64, generator=generator), labels)


@pytest.mark.long
def test_it_trains(module: ModuleType, tmp_path: Path) -> None:
    data = digits(300)
    torch.manual_seed(0)
    model = ComposerClassifier(torch.nn.Linear(64, 10), num_classes=10)
    names: dict[str, Any] = {
        "model": model,
        "sgd": torch.optim.SGD(model.parameters(), 0.05),
        "loader": DataLoader(data, batch_size=16, sampler=PrunedSampler(data)),
    }
    assert TRAINING.count("max_duration=") == 1
    code = TRAINING.replace("max_duration=", "device='cpu', progress_bar=False, run_name='r1', seed=1, max_duration=")
    exec(code, names)
    lists = [read_skip_list(path) for path in sorted((tmp_path / "ted_stream_runs/r1/skip_lists").glob("*.parquet"))]
    expected = module.LeastCertain(0.6).keep_ratios
    assert [found.num_kept for found in lists] == [expected.num_kept(epoch, 6, 300) for epoch in range(6)]
    assert lists[0].num_kept == lists[-1].num_kept == 300 > lists[-2].num_kept
    assert {found.method for found in lists} == {"LeastCertain"}
    with torch.no_grad():
        top = model.module(data.tensors[0]).softmax(1).topk(2).values
    margins = (top[:, 0] - top[:, 1]).numpy()
    kept = lists[-2].kept_ids()
    pruned = np.setdiff1d(np.arange(300), kept)
    assert np.median(margins[kept]) < np.median(margins[pruned])


@pytest.mark.long
@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(check: Any, module: ModuleType) -> None:
    check(module.LeastCertain(0.6))


@pytest.mark.long
def test_it_keeps_all_of_it(module: ModuleType) -> None:
    exec(CHECKING, {})
