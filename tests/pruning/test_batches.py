from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from ted_stream.pruning import batch_size, loss_shares, per_sample_cross_entropy, targets_of
from ted_stream.pruning.batches import logits_of, take_rows, tensors_of, total_loss


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3, 5),
        (torch.zeros(3, 5), torch.zeros(3)),
        [torch.zeros(3, 5), torch.zeros(7)],
        {"x": torch.zeros(3), "labels": torch.zeros(7)},
        UserDict(x=torch.zeros(3)),
        {"name": ["a", "b", "c"], "x": torch.zeros(3)},
        ("text", 5, {"x": {"y": torch.zeros(3)}}),
        ((torch.zeros(3), torch.zeros(4)), torch.zeros(5)),
    ],
)
def test_batch_size_is_that_of_the_first_tensor(batch):
    assert batch_size(batch) == 3


@pytest.mark.parametrize("batch", [{}, [], "text", None, 5, {"x": ["a"]}])
def test_a_batch_without_tensors_is_refused(batch):
    with pytest.raises(ValueError, match=f"{type(batch).__name__} holds no tensor; collate"):
        batch_size(batch)


def test_targets():
    x, y, z = torch.zeros(3, 5), torch.arange(3), torch.arange(3) + 1
    for name in ("labels", "label", "targets", "target"):
        assert targets_of({"x": x, name: y}) is y
        assert targets_of(UserDict({"x": x, name: y})) is y
    assert targets_of({"target": z, "x": x, "labels": y}) is y
    assert targets_of((x, y)) is y
    assert targets_of([x, y, z]) is y
    assert targets_of(({"input_ids": x}, y)) is y


@pytest.mark.parametrize("batch", [torch.zeros(2), (torch.zeros(2),), (torch.zeros(2), "y"), 5])
def test_missing_targets(batch):
    with pytest.raises(ValueError, match=r"No targets in a batch of type .*labels"):
        targets_of(batch)


def test_missing_targets_of_a_mapping():
    with pytest.raises(ValueError, match=r"no tensor 'labels' among \['x', 'y'\]"):
        targets_of({"y": torch.zeros(2), "x": torch.zeros(2)})


def test_rows_of_a_batch_and_of_outputs():
    class Pair(NamedTuple):
        first: Tensor
        second: Tensor

    x, classes, scalar = torch.arange(6).view(3, 2), torch.arange(5), torch.tensor(7)
    taken = take_rows({"x": x, "pair": Pair(x, classes), "rest": [scalar, "abc", 5]}, torch.tensor([2, 0]), 3)
    assert taken["x"].tolist() == [[4, 5], [0, 1]]
    assert isinstance(taken["pair"], Pair)
    assert taken["pair"].first.tolist() == [[4, 5], [0, 1]]
    assert taken["pair"].second is classes
    assert taken["rest"] == [scalar, "abc", 5]
    logits: Any = x
    outputs = CausalLMOutput(logits=logits)
    for kept in (UserDict(x=x), outputs):
        taken = take_rows(kept, torch.tensor([1]), 3)
        assert type(taken) is type(kept)
        assert [tensor.tolist() for tensor in tensors_of(taken)] == [[[2, 3]]]
        assert tensors_of(kept)[0] is x
    assert take_rows(outputs, torch.tensor([1]), 3).logits.tolist() == [[2, 3]]


def test_logits_of_outputs():
    z = torch.zeros(3, 5)
    for outputs in (z, {"logits": z, "loss": z.sum()}, UserDict(logits=z), SimpleNamespace(logits=z)):
        assert logits_of(outputs) is z
    for outputs in (z.sum(), {"loss": z}, (z, z), None, {"logits": [z]}):
        assert logits_of(outputs) is None


def test_the_whole_of_a_loss():
    x, y = torch.tensor(1.0), torch.tensor(2.0)
    for loss in (y, {"part": x, "total": y}, {"only": y}, [y]):
        assert total_loss(loss) is y
    several = torch.tensor([1.0, 3.0])  # of which a trainer takes the mean
    for loss in ({"one": y, "more": x}, (y, x), {"one": x, "more": several}):
        assert total_loss(loss) == 3


# Shares


def _shares(batch, *, shifted: bool) -> list[float]:
    own, all_ = loss_shares(batch, shifted=shifted)
    return (torch.ones(batch_size(batch)) * own / all_).tolist()


def test_shares_of_a_mean_over_samples():
    x = torch.zeros(4, 5)
    for batch in ((x, torch.arange(4)), (x, torch.full((4, 3), 1 / 3)), (x,), {"x": x, "noise": x}):
        for shifted in (False, True):
            assert _shares(batch, shifted=shifted) == [0.25] * 4
    # A sample without a target is not among those that are meant over.
    assert loss_shares((x, torch.tensor([0, -100, 2, 1])), shifted=False) == (1, torch.tensor(3))


def test_shares_of_a_mean_over_tokens():
    labels = torch.tensor([[7, 1, 2, 3], [-100, -100, 4, -100], [5, -100, -100, -100], [-100] * 4])
    batch = {"input_ids": torch.zeros(4, 4, dtype=torch.long), "labels": labels}
    for shifted, own, total in ((False, [4, 1, 1, 1], 6), (True, [3, 1, 1, 1], 4)):
        weights, of_all = loss_shares(batch, shifted=shifted)  # shifted: nothing predicts a row's first token
        assert isinstance(weights, Tensor)
        assert weights.tolist() == own
        assert int(of_all) == total
    pixels = torch.zeros(2, 3, 3, dtype=torch.long)
    pixels[0, 0] = -100
    assert _shares((torch.zeros(2, 1, 3, 3), pixels), shifted=False) == pytest.approx([6 / 15, 9 / 15])


@pytest.mark.parametrize("shifted", [False, True])
def test_shares_weigh_own_means_to_the_batch_mean(shifted):
    """Σ_k w_k ℓ_k is the loss that is trained: the definition of a share."""
    logits = torch.randn(5, 7, 11, generator=_rng(), dtype=torch.float64)
    labels = torch.randint(0, 11, (5, 7), generator=_rng(1))
    labels[torch.rand(5, 7, generator=_rng(2)) < 0.5] = -100
    labels[3] = -100
    batch = {"logits": logits, "labels": labels}
    own, all_ = loss_shares(batch, shifted=shifted)
    losses = per_sample_cross_entropy(logits, batch, shifted=shifted)
    assert losses[3] == 0
    z, y = (logits[:, :-1], labels[:, 1:]) if shifted else (logits, labels)
    mean = F.cross_entropy(z.flatten(0, 1), y.flatten())
    torch.testing.assert_close((own * losses).sum() / all_, mean, rtol=1e-13, atol=0)


# Losses


def _own_token_mean(logits: Tensor, labels: Tensor, *, shifted: bool) -> list[float]:
    """Row by row, position by position."""
    z = logits.double().numpy()
    losses = []
    for row, targets in zip(z, labels.tolist(), strict=True):
        terms = []
        for position in range(shifted, len(targets)):
            if targets[position] != -100:
                scores = row[position - shifted]
                terms.append(np.log(np.exp(scores).sum()) - scores[targets[position]])
        losses.append(float(np.mean(terms)) if terms else 0.0)
    return losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_losses_of_a_classifier(dtype):
    logits = (3 * torch.randn(6, 5, generator=_rng())).to(dtype).requires_grad_()
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    losses = per_sample_cross_entropy(logits, (None, targets), shifted=False)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert losses.dtype == wide
    assert not losses.requires_grad
    assert torch.equal(losses, F.cross_entropy(logits.detach().to(wide), targets, reduction="none"))


def test_losses_of_soft_targets():
    logits = torch.randn(4, 5, generator=_rng(), dtype=torch.float64)
    soft = torch.softmax(torch.randn(4, 5, generator=_rng(1), dtype=torch.float64), dim=1)
    losses = per_sample_cross_entropy(logits, (None, soft), shifted=True)
    torch.testing.assert_close(losses, -(soft * torch.log_softmax(logits, dim=1)).sum(1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shifted", [False, True])
def test_losses_of_a_language_model_are_own_token_means(shifted):
    logits = torch.randn(4, 6, 9, generator=_rng(), dtype=torch.float64)
    labels = torch.randint(0, 9, (4, 6), generator=_rng(1))
    labels[0, :3] = -100
    labels[1, 2:] = -100
    labels[2] = -100
    batch = {"labels": labels}
    expected = _own_token_mean(logits, labels, shifted=shifted)
    for outputs in (logits, {"logits": logits}):
        losses = per_sample_cross_entropy(outputs, batch, shifted=shifted)
        np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-12)
    assert expected[2] == 0
