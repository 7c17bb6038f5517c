"""GraNd at all parameters against one backward pass per sample."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surrogates import record, scored_batch
from torch import Tensor, nn

from ted_stream.methods.static import grand
from ted_stream.methods.static.grand import GraNd

N, C = 11, 4
FULL = GraNd(gradient="full")


class Images(nn.Module):
    """Takes (images, labels), as Composer's models do; with BatchNorm, layers of two names, and one not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3).requires_grad_(False)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Sequential(self.stem, self.norm, nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, C)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(self.body(batch[0]).relu().mean((2, 3)))


class Tokens(nn.Module):
    """A language model with tied embeddings; gives its logits as an entry, or its loss too."""

    def __init__(self, *, with_loss: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embedding.weight
        self.with_loss = with_loss

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.head(self.body(self.embedding(batch["input_ids"])))
        return {"logits": logits, "loss": logits.mean()} if self.with_loss else {"logits": logits}


def image_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(N) % C


def token_batch() -> dict[str, Tensor]:
    ids = torch.randint(13, (N, 7), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    for row in range(N):
        labels[row, : row % 5] = -100
    return {"input_ids": ids, "labels": labels}


def trained(model: nn.Module, batch: Any) -> nn.Module:
    """With running statistics of its own, and in evaluation mode."""
    with torch.no_grad():
        model(batch)
    return model.eval()


def by_a_loop(model: nn.Module, losses: list[Tensor]) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
    return torch.stack(norms)


def shifted_losses(logits: Tensor, labels: Tensor) -> list[Tensor]:
    return [F.cross_entropy(z[:-1], y[1:]) for z, y in zip(logits, labels, strict=True)]


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("grad", [True, False])
def test_images(chunk: int, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batch = image_batch()
    model = trained(Images(), batch)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    monkeypatch.setattr(grand, "_ENTRIES", chunk * trainable)
    with torch.set_grad_enabled(grad):  # a pass is made without gradients as a rule
        scored = scored_batch(batch, model(batch), size=N, model=model, forward=model)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = record(FULL, [[scored]]).columns["score"]
    losses = [F.cross_entropy(z, y) for z, y in zip(model(batch), batch[1], strict=True)]
    torch.testing.assert_close(torch.from_numpy(found), by_a_loop(model, losses), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None and p.is_leaf for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("with_loss", [False, True])
def test_tokens_with_tied_weights(with_loss: bool) -> None:
    """A loss that the model brought itself is passed over where it is of the whole batch."""
    torch.manual_seed(0)
    batch, model = token_batch(), Tokens(with_loss=with_loss).eval()
    scored = scored_batch(
        batch,
        model(batch),
        size=N,
        model=model,
        forward=model,
        shifted=True,
        loss_function=(lambda outputs, _: outputs["loss"]) if with_loss else None,
    )
    found = record(FULL, [[scored]]).columns["score"]
    expected = by_a_loop(model, shifted_losses(model(batch)["logits"], batch["labels"]))
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)


def test_the_models_own_loss() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    batch = (torch.randn(N, 5), torch.randn(N, 1))
    scored = scored_batch(
        batch,
        model(batch[0]).detach(),
        size=N,
        model=model,
        forward=lambda batch: model(batch[0]),
        loss_function=lambda outputs, batch: F.mse_loss(outputs, batch[1]),
    )
    found = record(FULL, [[scored]]).columns["score"]
    losses = [F.mse_loss(z, y) for z, y in zip(model(batch[0]), batch[1], strict=True)]
    torch.testing.assert_close(torch.from_numpy(found), by_a_loop(model, losses), rtol=1e-4, atol=1e-6)


def test_class_probabilities() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, C), torch.randn(N, 5)
    batch = (x, torch.rand(N, C).softmax(1))
    scored = scored_batch(batch, model(x).detach(), size=N, model=model, forward=lambda batch: model(batch[0]))
    losses = [F.cross_entropy(z[None], y[None]) for z, y in zip(model(x), batch[1], strict=True)]
    found = torch.from_numpy(record(FULL, [[scored]]).columns["score"])
    torch.testing.assert_close(found, by_a_loop(model, losses), rtol=1e-4, atol=1e-6)


def test_of_a_linear_model_the_last_layer_is_all() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, C), torch.randn(N, 5)
    batch = (x, torch.arange(N) % C)
    scored = scored_batch(
        batch, model(x).detach(), size=N, model=model, forward=lambda b: model(b[0]), features=x, has_bias=True
    )
    full, last = (record(method, [[scored]]).columns["score"] for method in (FULL, GraNd()))
    torch.testing.assert_close(full, last, rtol=1e-4, atol=1e-6)


def test_a_model_that_looks_at_values_is_refused_with_the_fix() -> None:
    class Looks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input if input.sum() > 0 else -input)

    model = Looks(5, C)
    batch = (torch.randn(N, 5), torch.arange(N) % C)
    scored = scored_batch(batch, model(batch[0]), size=N, model=model, forward=lambda b: model(b[0]))
    with pytest.raises(ValueError, match="gradient='last_layer'"):
        FULL.of_batch(scored, {}, 1)


def test_settings() -> None:
    assert GraNd().needs_features
    assert not FULL.needs_features
    assert eval(repr(FULL), {"GraNd": GraNd}) == FULL
    with pytest.raises(ValueError, match="gradient is 'first'"):
        GraNd(gradient="first")
