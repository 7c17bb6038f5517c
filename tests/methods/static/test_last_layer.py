"""The last layer's gradients against autograd, and what every method that chooses a set of a given size refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from last_layers import gradient, head_of, own_gradients, recorded_of
from torch import nn

from ted_stream.methods.static import last_layer
from ted_stream.methods.static.cd import CD
from ted_stream.methods.static.craig import CRAIG
from ted_stream.methods.static.dp import DP
from ted_stream.methods.static.glister import GLISTER
from ted_stream.methods.static.last_layer import LastLayer
from ted_stream.methods.static.picks import order_scores, ranks_of
from ted_stream.methods.static.static_method import Recorded, ScoredBatch, StaticMethod
from ted_stream.pruning.measures import Microbatch

METHODS: list[StaticMethod] = [CD(), CRAIG(), DP(), GLISTER()]


def scored_batch(outputs: Any, targets: torch.Tensor, features: torch.Tensor | None) -> ScoredBatch:
    batch = (torch.zeros(len(targets), 2), targets)
    microbatch = Microbatch(
        batch=batch, outputs=outputs, loss=torch.zeros(()), size=len(targets), shifted=False, features=features
    )
    return ScoredBatch(microbatch=microbatch, model=nn.Identity(), forward=lambda batch: batch)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_autograds(bias: bool) -> None:
    recorded = recorded_of(12, bias=bias)
    layer, own = LastLayer.of(recorded), own_gradients(recorded)
    assert layer.shape == head_of(recorded).shape
    for row in range(12):
        np.testing.assert_allclose(layer.gradient_sum(np.array([row])).ravel(), own[row], rtol=1e-4, atol=1e-6)
    rows = np.array([7, 2, 9])
    np.testing.assert_allclose(layer.gradient_sum(rows).ravel(), own[rows].sum(0), rtol=1e-4, atol=1e-6)
    matrix = np.random.default_rng(1).normal(size=layer.shape)
    np.testing.assert_allclose(layer.products(matrix), own @ matrix.ravel(), rtol=1e-4, atol=1e-5)
    distances = np.linalg.norm(own[rows][:, None] - own[rows][None], axis=2)
    np.testing.assert_allclose(layer.distances(rows), distances, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_after_a_change_of_the_head_are_autograds(bias: bool) -> None:
    recorded = recorded_of(bias=bias)
    layer, rows = LastLayer.of(recorded), np.array([3, 1, 20])
    change = np.random.default_rng(1).normal(size=layer.shape)
    expected = 3 * gradient(recorded, rows, head_of(recorded) + change)
    np.testing.assert_allclose(layer.gradient_sum(rows, change), expected, rtol=1e-4, atol=1e-6)


def test_errors_of_certain_predictions_keep_their_digits() -> None:
    """In float32 p is 1 from a margin of 17 on, and p - 1 would be 0."""
    logs = torch.tensor([[0.0, -40.0]]).log_softmax(1).numpy()
    columns = {"log_probabilities": logs, "features": np.ones((1, 1), np.float32)}
    layer = LastLayer.of(Recorded(columns=columns, labels=np.array([0])))
    row = np.array([0])
    np.testing.assert_allclose(layer.errors(row, layer.inputs(row)), [[-np.exp(-40), np.exp(-40)]], rtol=1e-5)


def test_a_projection_is_that_of_the_features() -> None:
    recorded = recorded_of()
    whole = LastLayer.of(recorded)
    matrix = np.random.default_rng(1).normal(size=(4, 2))
    layer = LastLayer(
        log_probabilities=whole.log_probabilities,
        features=whole.features,
        labels=whole.labels,
        has_bias=True,
        projection=matrix,
    )
    rows = np.arange(5)
    assert layer.shape == (3, 3)
    np.testing.assert_allclose(layer.inputs(rows)[:, :2], whole.features[rows] @ matrix, rtol=1e-6)
    np.testing.assert_array_equal(layer.inputs(rows)[:, 2], 1)


@pytest.mark.parametrize("method", [CRAIG(), GLISTER(per_step=2), DP(pool=8), CD()])
def test_scores_do_not_depend_on_how_much_is_read_at_a_time(
    method: StaticMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = recorded_of(40)
    whole = method.score(recorded, keep=15, seed=3)
    for block in (1, 60):
        monkeypatch.setattr(last_layer, "_BLOCK", block)
        monkeypatch.setattr("ted_stream.methods.static.cd._BLOCK", block)
        in_blocks = method.score(recorded, keep=15, seed=3)
        np.testing.assert_array_equal(in_blocks.scores, whole.scores)
        np.testing.assert_array_equal(in_blocks.weights is None, whole.weights is None)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_of_a_batch(method: StaticMethod) -> None:
    torch.manual_seed(0)
    features, head = torch.randn(5, 4).bfloat16(), nn.Linear(4, 3).bfloat16()
    outputs = head(features)
    found = method.of_batch(scored_batch(outputs, torch.arange(5) % 3, features), {}, 1)
    assert set(found) == ({"log_probabilities", "features"} if method.needs_features else {"log_probabilities"})
    torch.testing.assert_close(found["log_probabilities"], outputs.detach().float().log_softmax(1))
    for column in found.values():
        assert column.dtype is torch.float32
        assert not column.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_are_masked_out_are_written_finite(method: StaticMethod) -> None:
    outputs = torch.tensor([[0.0, -torch.inf, 1.0]])
    logs = method.of_batch(scored_batch(outputs, torch.tensor([0]), torch.zeros(1, 4)), {}, 1)["log_probabilities"]
    assert torch.isfinite(logs).all()
    assert 0 < float(logs.exp()[0, 1]) < 1e-37


@pytest.mark.parametrize("method", METHODS)
def test_sequences_are_refused(method: StaticMethod) -> None:
    with pytest.raises(ValueError, match=r"\(2, 5, 3\).*several predictions per sample"):
        method.of_batch(scored_batch(torch.zeros(2, 5, 3), torch.zeros(2, 5).long(), torch.zeros(2, 5, 4)), {}, 1)


@pytest.mark.parametrize("features", [None, torch.zeros(2, 5, 4)])
def test_features_that_are_no_vectors_are_refused(features: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"output_layer='…'"):
        GLISTER().of_batch(scored_batch(torch.zeros(2, 3), torch.zeros(2).long(), features), {}, 1)


@pytest.mark.parametrize("method", [CRAIG(), GLISTER(), DP()])
@pytest.mark.parametrize("labels", [None, [-100, 1, 2, 0], [0, 1, 2, 3]])
def test_labels_must_be_those_of_the_logits(method: StaticMethod, labels: list[int] | None) -> None:
    columns = recorded_of(4).columns
    recorded = Recorded(columns=columns, labels=None if labels is None else np.array(labels))
    with pytest.raises(ValueError, match="one class of each, from 0 to 2"):
        method.score(recorded, keep=2, seed=0)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_refused(method: StaticMethod) -> None:
    recorded = recorded_of(10)
    recorded.columns["log_probabilities"][7, 1] = np.nan
    with pytest.raises(ValueError, match="Sample 7 has log_probabilities that are not finite"):
        method.score(recorded, keep=2, seed=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, 31, -1])
def test_a_count_beyond_the_samples_is_refused(method: StaticMethod, keep: int) -> None:
    with pytest.raises(ValueError, match=rf"keep is {keep}, but must lie in \[1, 30\]"):
        method.score(recorded_of(), keep=keep, seed=0)


@pytest.mark.parametrize("method", [method for method in METHODS if method.needs_count])
def test_a_count_is_asked_for(method: StaticMethod) -> None:
    with pytest.raises(ValueError, match=rf"^{type(method).__name__} chooses a set of a given size.*prune_ratio"):
        method.score(recorded_of(), keep=None, seed=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [1, 2, 29, 30])
@pytest.mark.parametrize("twice", [False, True])
def test_the_highest_scores_are_the_kept(method: StaticMethod, keep: int, twice: bool) -> None:
    scored = method.score(recorded_of(twice=twice), keep=keep, seed=1)
    assert scored.scores.dtype == np.float32
    assert np.isfinite(scored.scores).all()
    order = np.sort(scored.scores)[::-1]
    assert keep == 30 or order[keep - 1] > order[keep]
    again = method.score(recorded_of(twice=twice), keep=keep, seed=1)
    np.testing.assert_array_equal(again.scores, scored.scores)


@pytest.mark.parametrize("method", METHODS)
def test_equal_samples_are_told_apart_by_the_seed_and_not_by_their_place(method: StaticMethod) -> None:
    """All samples alike: the one that is kept is the first, or the last, in no more seeds than chance has it."""
    recorded = recorded_of(12, labels=[0] * 12)
    columns = {name: np.repeat(column[:1], 12, 0) for name, column in recorded.columns.items()}
    same = Recorded(columns=columns, labels=recorded.labels, has_bias=recorded.has_bias)
    chosen = [int(method.score(same, keep=1, seed=seed).scores.argmax()) for seed in range(40)]
    assert len(set(chosen)) > 6


@pytest.mark.parametrize("method", METHODS)
def test_repr_rebuilds(method: StaticMethod) -> None:
    names = {"CD": CD, "CRAIG": CRAIG, "DP": DP, "GLISTER": GLISTER}
    assert eval(repr(method), names) == method


def test_scores_of_an_order() -> None:
    assert order_scores(np.array([3, 0, 2, 4]), 6).tolist() == [0.75, 0, 0.5, 1, 0.25, 0]
    assert order_scores(np.array([], np.int64), 2).tolist() == [0, 0]


def test_ranks_are_a_permutation_of_the_seed_and_epoch() -> None:
    ranks = ranks_of(50, seed=1)
    assert sorted(ranks.tolist()) == list(range(50))
    assert ranks.tolist() != ranks_of(50, seed=2).tolist()
    assert ranks.tolist() != ranks_of(50, seed=1, epoch=1).tolist()
