"""EL2N, Entropy, Margin, Least Confidence, GraNd at the last layer and Uniform against numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from surrogates import random_logits, record, scored_batch, softmax

from ted_stream.methods.static.el2n import EL2N
from ted_stream.methods.static.entropy import Entropy
from ted_stream.methods.static.grand import GraNd
from ted_stream.methods.static.least_confidence import LeastConfidence
from ted_stream.methods.static.margin import Margin
from ted_stream.methods.static.static_method import Recorded, StaticMethod
from ted_stream.methods.static.uniform import Uniform
from ted_stream.pruning.hashing import uniform

N, C, D, T = 37, 5, 4, 6
Floats = NDArray[np.float64]

# Of the predictions p (C,), the one-hot target y (C,) and the features f (D,) of one position; the highest are kept.
FORMULAS: dict[StaticMethod, Callable[[Floats, Floats, Floats], Any]] = {
    EL2N(): lambda p, y, f: np.sqrt(((p - y) ** 2).sum()),
    Entropy(): lambda p, y, f: -(p * np.log(p)).sum(),
    GraNd(): lambda p, y, f: np.linalg.norm(np.outer(p - y, np.append(f, 1))),
    LeastConfidence(): lambda p, y, f: 1 - p.max(),
    Margin(): lambda p, y, f: np.sort(p)[-2] - np.sort(p)[-1],
}
each_method = pytest.mark.parametrize("method", FORMULAS, ids=repr)


def test_their_reprs_rebuild_them() -> None:
    for method in FORMULAS:
        assert eval(repr(method), {type(method).__name__: type(method)}) == method


@each_method
def test_equals_its_formula(method: StaticMethod) -> None:
    logits, features = random_logits(N, C), torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(N) * 3 % C
    batches = [
        scored_batch(
            (torch.zeros(len(rows), 1), labels[rows]),
            logits[rows],
            size=len(rows),
            features=features[rows],
            has_bias=True,
        )
        for rows in torch.arange(N).split(10)
    ]
    found = method.score(record(method, [batches]), keep=None, seed=0)
    p, y = softmax(logits.numpy()), np.eye(C)[labels]
    expected = [FORMULAS[method](p[k], y[k], features[k].double().numpy()) for k in range(N)]
    assert found.scores.dtype == np.float32
    assert found.weights is None
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-7)


@each_method
def test_is_the_mean_over_the_samples_own_tokens(method: StaticMethod) -> None:
    logits, features = random_logits(N, T, C, seed=2), torch.randn(N, T, D, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(C, (N, T), generator=torch.Generator().manual_seed(4))
    for row in range(N):
        labels[row, : row % (T - 1)] = -100
    scored = scored_batch(
        {"input_ids": labels.clamp(min=0), "labels": labels},
        {"logits": logits},
        size=N,
        features=features,
        has_bias=True,
        shifted=True,
    )
    found = method.score(record(method, [[scored]]), keep=3, seed=0)
    p, expected = softmax(logits.numpy()), []
    for k in range(N):
        own = [t for t in range(1, T) if labels[k, t] != -100]  # position t - 1 predicts token t
        y = np.eye(C)[labels[k, own]]
        f = features[k].double().numpy()
        expected.append(np.mean([FORMULAS[method](p[k, t - 1], y[i], f[t - 1]) for i, t in enumerate(own)]))
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [Entropy(), LeastConfidence(), Margin()], ids=repr)
def test_needs_no_labels(method: StaticMethod) -> None:
    logits = random_logits(N, C)
    with_labels = record(method, [[scored_batch((torch.zeros(N, 1), torch.zeros(N).long()), logits, size=N)]])
    without = record(method, [[scored_batch(torch.zeros(N, 1), logits, size=N)]])
    np.testing.assert_array_equal(without.columns["score"], with_labels.columns["score"])


def test_least_confidence_tells_those_apart_that_are_sure() -> None:
    logits = torch.zeros(3, C)
    logits[:, 0] = torch.tensor([30.0, 50.0, 40.0])
    scores = record(LeastConfidence(), [[scored_batch(torch.zeros(3, 1), logits, size=3)]]).columns["score"]
    assert np.argsort(-scores).tolist() == [0, 2, 1]
    assert (scores > 0).all()


@each_method
def test_a_surrogate_that_diverged_is_refused(method: StaticMethod) -> None:
    scores = np.zeros(9, np.float32)
    scores[[4, 7]] = np.nan
    with pytest.raises(ValueError, match=r"2 of 9 samples no finite score, the first, sample 4, nan"):
        method.score(Recorded(columns={"score": scores}), keep=None, seed=0)


def test_uniform_is_a_hash_of_seed_and_id() -> None:
    recorded = record(Uniform(), [[scored_batch(torch.zeros(9, 1), None, size=9)] * 3])
    first, again, other = (Uniform().score(recorded, keep=None, seed=seed).scores for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, uniform(np.arange(27), seed=5).astype(np.float32))
    assert (first != other).all()


def test_which_average_over_runs() -> None:
    assert EL2N.averages_runs
    assert GraNd.averages_runs
    assert not any(kind.averages_runs for kind in (Entropy, LeastConfidence, Margin, Uniform))
