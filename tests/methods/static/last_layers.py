"""Small datasets before an output layer, and their gradients by autograd."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ted_stream.methods.static.static_method import Recorded


@dataclass(frozen=True, kw_only=True)
class WithHead(Recorded):
    """What a pass writes, and the head's ``weight`` (C, D) and, with one, ``bias`` (C,) that made it."""

    head: dict[str, NDArray[np.float32]]


def recorded_of(
    size: int = 30,
    classes: int = 3,
    width: int = 4,
    *,
    seed: int = 0,
    bias: bool = True,
    labels: list[int] | None = None,
    twice: bool = False,
) -> WithHead:
    """What a pass writes of random features before a random head; with ``twice``, every sample two times in a row."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(size, width)).astype(np.float32)
    truth = rng.integers(0, classes, size) if labels is None else np.array(labels)
    if twice:
        features, truth = features[np.arange(size) // 2], truth[np.arange(size) // 2]
    head = {"weight": rng.normal(size=(classes, width)).astype(np.float32)}
    if bias:
        head["bias"] = rng.normal(size=classes).astype(np.float32)
    logits = torch.from_numpy(features @ head["weight"].T + head.get("bias", np.float32(0)))
    columns = {"log_probabilities": logits.log_softmax(1).numpy(), "features": features}
    return WithHead(columns=columns, labels=truth.astype(np.int64), has_bias=bias, head=head)


def head_of(recorded: WithHead) -> NDArray[np.float64]:
    """(C, D + 1), the weight and the bias; (C, D) without a bias."""
    parts = [recorded.head["weight"]]
    if recorded.has_bias:
        parts.append(recorded.head["bias"][:, None])
    return np.hstack(parts).astype(np.float64)


def mean_loss(recorded: WithHead, rows: NDArray[np.int64], head: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of some samples by a head (C, D + 1) or (C, D)."""
    assert recorded.labels is not None
    weight, bias = (head[:, :-1], head[:, -1]) if recorded.has_bias else (head, None)
    features = torch.from_numpy(recorded.columns["features"][rows]).double()
    logits = nn.functional.linear(features, weight, bias)
    return nn.functional.cross_entropy(logits, torch.from_numpy(recorded.labels[rows]))


def gradient(recorded: WithHead, rows: NDArray[np.int64], head: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gradient of that loss by the head, by autograd."""
    leaf = torch.from_numpy(head).requires_grad_()
    mean_loss(recorded, rows, leaf).backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def own_gradients(recorded: WithHead) -> NDArray[np.float64]:
    """(N, P) the samples' own gradients by the trained head, by autograd."""
    head, size = head_of(recorded), len(recorded)
    heads = torch.from_numpy(head).repeat(size, 1, 1).requires_grad_()  # one for each sample
    weight, bias = (heads[:, :, :-1], heads[:, :, -1]) if recorded.has_bias else (heads, 0)
    features = torch.from_numpy(recorded.columns["features"]).double()
    logits = torch.einsum("icd,id->ic", weight, features) + bias
    nn.functional.cross_entropy(logits, torch.from_numpy(recorded.labels), reduction="sum").backward()
    assert heads.grad is not None
    return heads.grad.reshape(size, -1).numpy()


def kept(scores: NDArray[np.float32], keep: int) -> list[int]:
    """The ids of the highest scores, from the highest down."""
    return np.argsort(-scores, kind="stable")[:keep].tolist()
