"""InfoBatch against the paper's sampler, written down again in numpy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ted_stream.engine import StepRecorder
from ted_stream.methods import InfoBatch
from ted_stream.pruning import Measurements, Owned, ScoreStore, num_kept
from ted_stream.pruning.hashing import uniform
from ted_stream.pruning.measures import Loss
from ted_stream.pruning.probe import StepProbe


class PaperSampler:
    """The official ``InfoBatch`` dataset and sampler, but for where their random numbers come from.

    Scores start at 3 and become the latest losses; in an epoch before δ·T, samples below the mean score are left out
    but for int((1 - r)·M) of these M, which weigh 1 / (1 - r); after it all samples are taken, with weight 1.
    """

    def __init__(self, num_samples: int, prune_ratio: float, num_epochs: int, delta: float = 0.875) -> None:
        self.scores = np.full(num_samples, 3.0, np.float32)
        self.keep_ratio = 1 - prune_ratio
        self.pruning_epochs = num_epochs - round((1 - delta) * num_epochs)

    def epoch(self, epoch: int, draws: NDArray[np.float32]) -> tuple[list[int], dict[int, float]]:
        """The ids of an epoch, and their weights."""
        everything = np.arange(len(self.scores))
        if epoch >= self.pruning_epochs:
            return everything.tolist(), dict.fromkeys(everything.tolist(), 1.0)
        well_learnt = np.flatnonzero(self.scores < self.scores.mean(dtype=np.float64).astype(np.float32))
        remained = np.setdiff1d(everything, well_learnt)
        number = int(round(self.keep_ratio * len(well_learnt), 6))
        drawn = well_learnt[np.argsort(-draws[well_learnt], kind="stable")[:number]]
        weights = dict.fromkeys(remained.tolist(), 1.0) | dict.fromkeys(drawn.tolist(), 1 / self.keep_ratio)
        return sorted(weights), weights


@pytest.mark.parametrize("num_samples", [10, 131, 2000])
@pytest.mark.parametrize("prune_ratio", [0.0, 0.3, 0.5, 0.7])
def test_is_the_papers_sampler(prune_ratio: float, num_samples: int) -> None:
    num_epochs, seed = 16, 5
    method = InfoBatch(prune_ratio)
    paper = PaperSampler(num_samples, prune_ratio, num_epochs)
    store = ScoreStore(num_samples, method.running())
    rng = np.random.default_rng(num_samples)
    kept_counts = []
    for epoch in range(num_epochs):
        draws = uniform(np.arange(num_samples), seed=seed, epoch=epoch).astype(np.float32)
        ids, weights = paper.epoch(epoch, draws)
        owned = Owned(store, epoch=epoch, seed=seed)
        ratio = method.keep_ratio(epoch, num_epochs)
        chosen = method.choose(owned, epoch, None if ratio is None else num_kept(ratio, num_samples))
        assert np.flatnonzero(chosen.keep).tolist() == ids
        found = np.broadcast_to(method.weigh(owned, chosen, len(ids) / num_samples), len(ids))
        np.testing.assert_allclose(found, [weights[sample] for sample in ids], rtol=1e-6)
        losses = rng.gamma(2.0, 0.9**epoch, size=len(ids)).astype(np.float32)
        paper.scores[ids] = losses
        store.update(Measurements(ids=np.array(ids), importance=losses.astype(float), steps=np.zeros(len(ids), int)))
        kept_counts.append(len(ids))
    assert kept_counts[0] == num_samples, "all scores are 3, and none is below their mean"
    assert kept_counts[-2:] == [num_samples] * 2, "the last eighth trains on all"
    assert (min(kept_counts) < num_samples) == (prune_ratio > 0)


def test_the_start_is_three() -> None:
    """Beside measured losses an unmeasured sample counts as 3."""
    store = ScoreStore(4, InfoBatch(0.5).running())
    store.update(Measurements(ids=np.arange(3), importance=np.array([2.9, 2.9, 6.0]), steps=np.zeros(3, int)))
    chosen = InfoBatch(0.5).choose(Owned(store, epoch=1, seed=0), 1, None)  # of a mean of 3.7
    assert chosen.inclusion is not None
    assert chosen.inclusion.tolist() == [0.5, 0.5, 1.0, 0.5]
    store.update(Measurements(ids=np.array([2]), importance=np.array([0.5]), steps=np.zeros(1, int)))  # of 2.325
    chosen = InfoBatch(0.5).choose(Owned(store, epoch=1, seed=0), 1, None)
    assert chosen.inclusion is not None
    assert chosen.inclusion.tolist() == [1.0, 1.0, 0.5, 1.0]


def test_few_that_are_well_learnt() -> None:
    """int(0.3 · 3) = 0 of them stay, and int(0.3 · 10) = 3, though 1 - 0.7 is a little less than 0.3."""
    for well_learnt, stay in ((3, 0), (10, 3), (20, 6)):
        store = ScoreStore(well_learnt + 1, InfoBatch(0.7).running())
        values = np.append(np.full(well_learnt, 0.1), 9.0)
        store.update(Measurements(ids=np.arange(well_learnt + 1), importance=values, steps=np.zeros(len(values), int)))
        chosen = InfoBatch(0.7).choose(Owned(store, epoch=1, seed=0), 1, None)
        assert np.count_nonzero(chosen.keep) == stay + 1


def test_ids_are_exact_above_2_to_the_25_under_bfloat16() -> None:
    """The official gather puts ids and losses into one float tensor; under bfloat16 257 becomes 256."""
    num_samples = (1 << 25) + 301
    ids = torch.arange(num_samples - 300, num_samples, 3)
    torch.manual_seed(0)
    model = nn.Linear(4, 3).bfloat16()
    batch = (torch.randn(len(ids), 4).bfloat16(), torch.arange(len(ids)) % 3)
    probe = StepProbe(Loss())
    probe.attach(model)
    recorder = StepRecorder(probe)
    recorder.begin(ids)
    outputs = model(recorder.before_forward(batch)[0])
    loss = nn.functional.cross_entropy(outputs, batch[1])
    recorder.before_backward(batch, outputs, loss)
    loss.backward()
    recorder.after_backward()
    recorder.commit(0)
    store = ScoreStore(num_samples, InfoBatch(0.5).running())
    store.update(recorder.measurements())
    assert np.flatnonzero(~np.isnan(store.scores)).tolist() == ids.tolist()
    exact = nn.functional.cross_entropy(outputs.detach().float(), batch[1], reduction="none")
    np.testing.assert_allclose(store.scores[ids.numpy()], exact.numpy(), rtol=1e-6)
