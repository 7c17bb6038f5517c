import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ted_stream.pruning.generalization import cosine, flat_gradient, interpolated, least_kept, mean_over, pearson


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(12, 3, dtype=torch.float64), torch.randint(2, (12,))


def test_means() -> None:
    values = np.array([1, 2, 4, 8], np.float32)
    assert mean_over(values, np.array([True, False, True, False])) == 2.5
    assert mean_over(values, np.zeros(4, np.bool_)) is None
    with pytest.raises(ValueError, match=r"values have shape \(4,\) and members \(3,\)"):
        mean_over(values, np.ones(3, np.bool_))


def test_the_least_kept() -> None:
    times = np.array([3, 0, 2, 2, 1, 2, 5], np.int32)
    assert np.flatnonzero(least_kept(times, 2)).tolist() == [1, 4]
    found = [np.flatnonzero(least_kept(times, 3, seed=seed)).tolist() for seed in range(20)]
    assert all(ids[:1] == [1] and 4 in ids and len(ids) == 3 for ids in found)
    assert {(set(ids) - {1, 4}).pop() for ids in found} == {2, 3, 5}  # ties fall by the seed
    assert least_kept(times, 7).all()
    assert not least_kept(times, 0).any()
    for count in (-1, 8):
        with pytest.raises(ValueError, match=rf"count is {count}, but it must lie in \[0, 7\]"):
            least_kept(times, count)


def test_gradients_are_those_of_every_sample(network: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Σ c_k ∇ℓ_k, beside a backward pass for each sample alone."""
    x, y = data
    parameters = list(network.parameters())
    factors = torch.linspace(-1, 2, 12, dtype=torch.float64)
    losses = cross_entropy(network(x), y, reduction="none")
    found = flat_gradient(losses @ factors, parameters)
    expected = torch.zeros_like(found)
    for row in range(12):
        network.zero_grad()
        cross_entropy(network(x[row : row + 1]), y[row : row + 1]).backward()
        expected += factors[row] * torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    again = flat_gradient(losses[:3].sum(), [*parameters, torch.zeros(2, requires_grad=True)])
    assert again[-2:].tolist() == [0, 0]


def test_correlations(network: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = data
    losses, parameters = cross_entropy(network(x), y, reduction="none"), list(network.parameters())
    keep = torch.arange(12) % 3 > 0
    whole, kept = flat_gradient(losses.mean(), parameters), flat_gradient(losses[keep].mean(), parameters)
    a, b = whole.numpy(), kept.numpy()
    assert cosine(kept, whole) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
    assert pearson(kept, whole) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert cosine(3 * whole, whole) == pytest.approx(1, abs=1e-12)
    assert pearson(3 * whole, whole) == pytest.approx(1, abs=1e-12)
    assert cosine(-whole, whole) == pytest.approx(-1, abs=1e-12)
    assert cosine(torch.zeros_like(whole), whole) is None
    assert cosine(torch.full_like(whole, torch.nan), whole) is None
    assert pearson(torch.ones_like(whole), whole) is None


def test_interpolation() -> None:
    start = {"w": torch.tensor([1.0, 0.1]), "count": torch.tensor(3)}
    end = {"w": torch.tensor([2.0, 0.7]), "count": torch.tensor(9)}
    for alpha, ends in ((0.0, start), (1.0, end)):
        found = interpolated(start, end, alpha)
        assert found.keys() == ends.keys()
        assert all(torch.equal(found[name], ends[name]) for name in ends)
    half = interpolated(start, end, 0.25)
    torch.testing.assert_close(half["w"], torch.tensor([1.25, 0.25]))
    assert half["count"] == 3
    with pytest.raises(ValueError, match=r"alpha is 1.1, but it must lie in \[0, 1\]"):
        interpolated(start, end, 1.1)
    with pytest.raises(ValueError, match=r"differ in w: \(2,\) and \(3,\)"):
        interpolated(start, {**end, "w": torch.zeros(3)}, 0.5)
    with pytest.raises(ValueError, match="differ in extra: None and"):
        interpolated(start, {**end, "extra": torch.zeros(3)}, 0.5)
