"""What other implementations get wrong, that no other test of ours asks for by name.

InfoBatch's ids under bfloat16 are in test_infobatch.py, its epochs that end in test_contract.py, GLISTER's validation
gradient in static/test_glister.py, resuming, ranks and streaming in test_contract.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from owners import History
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

from ted_stream import InfoBatch, PrunedSampler, Pruner
from ted_stream.methods import METHODS, Composed, OrderDP, ScheduledMethod
from ted_stream.methods.static import choose_subset

SCHEDULED = [cls for cls in METHODS.values() if issubclass(cls, ScheduledMethod) and cls.__name__ != "Learnability"]


@pytest.mark.parametrize("cls", SCHEDULED, ids=lambda cls: cls.__name__)
def test_a_ratio_of_a_fifth_prunes_a_fifth(cls: type[ScheduledMethod]) -> None:
    """DataCull's pruning_rate=0.2 keeps 20 %."""
    run = History(cls(0.2, schedule="constant", annealing=0.0), 100, 4, labels=np.arange(100) % 3)
    for epoch in range(3):
        _, chosen, _ = run.choose(epoch)
        assert np.count_nonzero(chosen.keep) == 80
        run.measure(epoch, chosen, np.random.default_rng(epoch).random(100))


def test_a_static_ratio_counts_what_is_kept() -> None:
    assert np.count_nonzero(choose_subset(np.arange(100.0), 80)) == 80


@pytest.mark.long
@pytest.mark.parametrize("method", [InfoBatch(0.5), OrderDP(0.5), Composed(0.5, class_shares="equal")], ids=repr)
def test_a_subset_of_a_dataset_is_a_dataset(method: ScheduledMethod, tmp_path: Path) -> None:
    """InfoBatch's own dataset fails on a torch Subset; the samples that are trained on are those of the subset."""
    torch.manual_seed(0)
    whole = TensorDataset(torch.arange(200.0)[:, None] / 200, torch.arange(200) % 3)
    subset = Subset(whole, range(50, 150))
    loader = DataLoader(subset, batch_size=8, sampler=PrunedSampler(subset))
    model = nn.Linear(1, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Pruner(method, model, loader, epochs=6, folder=tmp_path) as pruner:
        for _ in pruner:
            seen: list[int] = []
            for x, y in pruner.batches():
                seen += (x[:, 0] * 200).round().int().tolist()
                pruner.loss(cross_entropy(model(x), y)).backward()
                optimizer.step()
                optimizer.zero_grad()
            record = pruner.engine.records[-1]
            assert len(seen) == len(set(seen)) == record.kept
            assert set(seen) <= set(range(50, 150))
        assert min(record.kept for record in pruner.engine.records) < 100
