"""DeepFool on models whose distance to the boundary is known."""

from typing import Any

import numpy as np
import pytest
import torch
from surrogates import record, scored_batch
from torch import Tensor, nn

from ted_stream.methods.static.deepfool import DeepFool
from ted_stream.methods.static.static_method import ScoredBatch

N, C = 17, 5
LARGEST = np.finfo(np.float32).max


def scored(model: nn.Module, x: Tensor) -> ScoredBatch:
    batch = {"x": x, "label": torch.zeros(len(x)).long(), "name": [str(at) for at in range(len(x))]}
    return scored_batch(
        batch, model(x).detach(), size=len(x), model=model, forward=lambda batch: {"logits": model(batch["x"])}
    )


def scores(method: DeepFool, model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return method.score(record(method, [[scored(model, x)]]), keep=None, seed=0).scores


def of_linear(model: nn.Linear, x: Tensor, classes: int = C) -> list[float]:
    """Minus the squared distance to the nearest of the hyperplanes where two logits are equal."""
    w, b = (p.detach().double().numpy() for p in (model.weight, model.bias))
    expected = []
    for row in x.double().numpy().reshape(len(x), -1):
        z = w @ row + b
        first, *others = np.argsort(-z)[:classes]
        distances = [(z[first] - z[c]) / np.linalg.norm(w[first] - w[c]) for c in others]
        expected.append(-(min(distances) ** 2))
    return expected


@pytest.mark.parametrize("classes", [None, 2, 3, 10])
def test_of_a_linear_model_it_is_the_distance_to_the_nearest_boundary(classes: int | None) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(12, C), torch.randn(N, 3, 2, 2)
    found = scores(DeepFool(classes=classes), nn.Sequential(nn.Flatten(), linear), x)
    np.testing.assert_allclose(found, of_linear(linear, x, classes or C), rtol=1e-4, atol=1e-7)


def by_a_loop(model: nn.Module, x: Tensor, steps: int) -> float:
    """Algorithm 2 of Moosavi-Dezfooli et al. for one sample, with the source's overshoot."""
    moved = torch.zeros_like(x)
    predicted = int(model(x[None]).argmax())
    for _ in range(steps):
        at = (x + 1.02 * moved).requires_grad_()
        z = model(at[None])[0]
        if int(z.argmax()) != predicted:
            break
        gradients = [torch.autograd.grad(value, at, retain_graph=True)[0] for value in z]
        normals = {c: gradients[c] - gradients[predicted] for c in range(C) if c != predicted}
        nearest = min(normals, key=lambda c: float((z[c] - z[predicted]).abs() / normals[c].norm()))
        normal = normals[nearest]
        moved = moved + (z[nearest] - z[predicted]).abs().detach() / normal.norm() ** 2 * normal
    return -float(moved.square().sum())


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_of_a_curved_model_it_is_the_algorithm_one_by_one(steps: int) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, C)).double().eval()
    x = torch.randn(N, 4).double()
    found = scores(DeepFool(steps=steps), model, x)
    np.testing.assert_allclose(found, [by_a_loop(model, row, steps) for row in x], rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in model.parameters())


def test_samples_that_changed_are_frozen() -> None:
    """They leave the batch, and a sample's score does not hang on the others."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, C)).eval()
    x = torch.randn(N, 4)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    whole = scores(DeepFool(), model, x)
    assert sizes[1] == N  # the first is the caller's own pass
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    assert 0 < sizes[-1] < N
    alone = np.concatenate([scores(DeepFool(), model, row[None]) for row in x])
    np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-7)


def test_what_no_gradient_moves_is_farthest() -> None:
    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.relu() @ torch.tensor([[1.0, 0.0], [0.0, 1.0]])
            return z + torch.tensor([1.0, 0.0])

    found = scores(DeepFool(), Dead(), torch.tensor([[-1.0, -1.0], [1.0, 1.0], [3.0, -3.0]]))
    assert found[0] == -LARGEST
    assert found[1] == pytest.approx(-0.5)
    assert np.isfinite(found).all()
    assert found.argmax() == 1


def test_what_it_cannot_move_is_refused() -> None:
    tokens = scored_batch((torch.arange(4), torch.arange(4)), torch.randn(4, C), size=4)
    with pytest.raises(ValueError, match=r"first tensor is of torch\.int64"):
        DeepFool().of_batch(tokens, {}, 1)
    for outputs in (torch.randn(4, 3, C), None, torch.full((4, C), torch.nan)):
        with pytest.raises(ValueError, match=r"finite logits \(B, C\)"):
            DeepFool().of_batch(scored_batch((torch.randn(4, 2), torch.arange(4)), outputs, size=4), {}, 1)


def test_settings() -> None:
    method = DeepFool(steps=np.int64(7), classes=None)  # pyright: ignore[reportArgumentType]
    assert repr(method) == "DeepFool(steps=7, classes=None)"
    for name, value in (("steps", 0), ("classes", 1), ("steps", -3)):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            DeepFool(**{name: value})
    for wrong in (1.5, True, None, "3"):
        with pytest.raises(TypeError, match="steps is"):
            DeepFool(steps=wrong)  # pyright: ignore[reportArgumentType]
