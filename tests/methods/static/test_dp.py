"""DP against an explicit Hessian, a naive greedy and exhaustive search."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from last_layers import WithHead, head_of, kept, mean_loss, own_gradients, recorded_of
from numpy.typing import NDArray

from ted_stream.methods.static.dp import DP
from ted_stream.methods.static.influence import LARGEST, Influences, last_layer_hessian
from ted_stream.methods.static.last_layer import LastLayer
from ted_stream.methods.static.static_method import Recorded

Array = NDArray[np.float64]


def explicit_hessian(recorded: WithHead) -> Array:
    head = head_of(recorded)
    rows = np.arange(len(recorded))

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        return mean_loss(recorded, rows, parameters.view(head.shape))

    hessian: Any = torch.autograd.functional.hessian(loss, torch.from_numpy(head.ravel()))
    return hessian.numpy()


def explicit_influences(recorded: WithHead, damping: float = 0.01) -> Array:
    """(N, P) (H + λ I)⁻¹ g_i / N."""
    hessian = explicit_hessian(recorded)
    damped = hessian + damping * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    return np.linalg.solve(damped, own_gradients(recorded).T).T / len(recorded)


def naive_greedy(vectors: Array) -> list[int]:
    left: list[int] = []
    while len(left) < len(vectors):
        total = vectors[left].sum(0)
        rest = [row for row in range(len(vectors)) if row not in left]
        left.append(min(rest, key=lambda row: float(np.linalg.norm(total + vectors[row]))))
    return left


def left_out(scores: NDArray[np.float32], leave: int) -> list[int]:
    return np.argsort(scores, kind="stable")[:leave].tolist()


@pytest.mark.parametrize("bias", [True, False])
def test_the_hessian_is_autograds(bias: bool) -> None:
    recorded = recorded_of(15, bias=bias)
    found = last_layer_hessian(LastLayer.of(recorded)).numpy()
    np.testing.assert_allclose(found, explicit_hessian(recorded), rtol=1e-5, atol=1e-7)


def test_a_hessian_that_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = recorded_of(15)
    monkeypatch.setattr("ted_stream.methods.static.last_layer._BLOCK", 100)
    assert len(list(LastLayer.of(recorded).blocks(width=15))) > 3
    found = last_layer_hessian(LastLayer.of(recorded)).numpy()
    np.testing.assert_allclose(found, explicit_hessian(recorded), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bias", [True, False])
def test_influences_are_the_explicit_ones(bias: bool) -> None:
    recorded = recorded_of(15, bias=bias)
    influences, expected = Influences(LastLayer.of(recorded), 0.01), explicit_influences(recorded)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(influences.of(np.arange(15)), expected, rtol=1e-3, atol=1e-4 * scale)


def test_an_influence_is_what_leaving_out_does() -> None:
    """The head that is trained without a sample lies where the trained head and its influence say."""
    recorded = recorded_of(60, classes=2, width=2, seed=3)
    assert recorded.labels is not None
    weights = torch.ones(60, dtype=torch.float64)
    features, labels = torch.from_numpy(recorded.columns["features"]).double(), torch.from_numpy(recorded.labels)
    inputs = torch.cat([features, torch.ones(60, 1, dtype=torch.float64)], 1)

    def trained(weights: torch.Tensor) -> torch.Tensor:
        head = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([head], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = torch.nn.functional.cross_entropy(inputs @ head.T, labels, reduction="none")
            loss = (weights * losses).sum() / 60
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        return head.detach()

    whole = trained(weights)
    logs = (inputs @ whole.T).log_softmax(1).float().numpy()
    columns = {"log_probabilities": logs, "features": recorded.columns["features"]}
    influences = Influences(LastLayer.of(Recorded(columns=columns, labels=recorded.labels, has_bias=True)), 1e-6)
    found = influences.of(np.arange(5)).reshape(5, 2, 3)
    for row in range(5):
        weights = torch.ones(60, dtype=torch.float64)
        weights[row] = 0
        change = (trained(weights) - whole).numpy()
        change -= change.mean(0)  # softmax does not see what is added to all classes
        np.testing.assert_allclose(found[row], change, rtol=0.3, atol=0.2 * np.abs(change).max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_the_naive_greedys(seed: int, bias: bool) -> None:
    recorded = recorded_of(18, seed=seed, bias=bias)
    expected = naive_greedy(explicit_influences(recorded))
    for keep in (1, 5, 17):
        scores = DP().score(recorded, keep=keep, seed=seed).scores
        assert left_out(scores, 18 - keep) == expected[: 18 - keep]
        assert (scores[expected[18 - keep :]] == 0).all()
    assert kept(DP().score(recorded, keep=None, seed=seed).scores, 18)[::-1] == expected


@pytest.mark.parametrize("size", [10, 11])
def test_the_sum_is_among_the_smallest_of_all_sets(size: int) -> None:
    below, best = [], []
    for seed in range(12):
        recorded = recorded_of(size, seed=seed)
        vectors = explicit_influences(recorded)
        for leave in (2, size // 2):
            norms = [np.linalg.norm(vectors[list(rows)].sum(0)) for rows in combinations(range(size), leave)]
            rows = left_out(DP().score(recorded, keep=size - leave, seed=0).scores, leave)
            found = np.linalg.norm(vectors[rows].sum(0))
            below.append(np.mean(np.array(norms) < found * (1 - 1e-6)))
            best.append(float(found) / min(norms))
    assert min(best) == pytest.approx(1)
    assert np.mean(below) < 0.03
    assert max(below) < 0.2
    assert np.median(best) < 1.1


def test_influences_that_cancel_are_left_out() -> None:
    """Each sample also with the other label at p = 1/2: together the two leave the head where it is."""
    features = np.repeat(np.array([[1.0, 0], [0, 2], [3, 1]], np.float32), 2, 0)
    columns = {"log_probabilities": np.full((6, 2), np.log(0.5), np.float32), "features": features}
    recorded = Recorded(columns=columns, labels=np.array([0, 1] * 3))
    for keep in (4, 2):
        rows = left_out(DP().score(recorded, keep=keep, seed=0).scores, 6 - keep)
        assert sorted(row // 2 for row in rows) == sorted(2 * [row // 2 for row in rows[::2]])


def test_what_is_well_learnt_is_left_out_first() -> None:
    recorded = recorded_of(30)
    norms = np.linalg.norm(explicit_influences(recorded), axis=1)
    assert DP().score(recorded, keep=20, seed=0).scores.argmin() == norms.argmin()


@pytest.mark.parametrize("pool", [1, 2, 7, 24])
def test_a_small_pool_has_an_order_of_all_that_does_not_depend_on_the_count(pool: int) -> None:
    recorded = recorded_of(50)
    whole = left_out(DP(pool=pool).score(recorded, keep=None, seed=0).scores, 50)
    assert sorted(whole) == list(range(50))
    for keep in (1, 20, 44, 50):
        assert left_out(DP(pool=pool).score(recorded, keep=keep, seed=0).scores, 50 - keep) == whole[: 50 - keep]


def test_a_pool_finds_sums_about_as_small() -> None:
    recorded = recorded_of(300, classes=4, width=6)
    vectors = explicit_influences(recorded)
    norms = {}
    for pool in (40, 300):
        rows = left_out(DP(pool=pool).score(recorded, keep=150, seed=0).scores, 150)
        norms[pool] = np.linalg.norm(vectors[rows].sum(0))
    drawn = np.random.default_rng(0).choice(300, 150, replace=False)
    assert norms[40] < 3 * norms[300]
    assert norms[40] < 0.2 * np.linalg.norm(vectors[drawn].sum(0))


def test_all_kept_score_alike() -> None:
    assert DP().score(recorded_of(), keep=30, seed=0).scores.tolist() == [0] * 30


def test_samples_without_gradients() -> None:
    """All features zero, and no bias: nothing to tell samples apart by but the hash."""
    recorded = recorded_of(8, bias=False)
    recorded.columns["features"][:] = 0
    scores = DP().score(recorded, keep=3, seed=0).scores
    assert np.count_nonzero(scores) == 5


def test_a_projection_reduces_the_features() -> None:
    recorded = recorded_of(40, width=30)
    found = [DP(features=features).score(recorded, keep=20, seed=0).scores for features in (3, 30, 31, None)]
    assert (found[0] != found[3]).any()
    np.testing.assert_array_equal(found[1], found[3])
    np.testing.assert_array_equal(found[2], found[3])
    assert (found[0] != DP(features=3).score(recorded, keep=20, seed=1).scores).any()
    DP(features=3).score(recorded, keep=20, seed=-1)


@pytest.mark.parametrize("bias", [True, False])
def test_a_hessian_beyond_2_gib_is_refused(bias: bool) -> None:
    classes = 64
    width = LARGEST // classes + 1 - bias
    recorded = recorded_of(2, classes=classes, width=width, bias=bias)
    most = LARGEST // classes - bias
    with pytest.raises(ValueError, match=rf"64 classes and 257 inputs .* 2\.02 GiB, .* features={most} or fewer"):
        DP().score(recorded, keep=1, seed=0)
    DP(features=2).score(recorded, keep=1, seed=0)


def test_too_many_classes_are_refused() -> None:
    recorded = recorded_of(2, classes=LARGEST, width=1)
    with pytest.raises(ValueError, match=r"8\.00 GiB.*There are too many classes"):
        DP(features=1).score(recorded, keep=1, seed=0)


WRONG: dict[str, list[Any]] = {
    "features": [0, -1, 1.5, "9", True],
    "damping": [0, -0.1, "0.1", True, None, float("nan"), float("inf")],
    "pool": [0, -1, 1.5, "9", True, None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_setting_is_refused(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name} is .* must"):
        DP(**{name: value})
