"""Small surrogates, their scoring batches, and what passes over them record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ted_stream.methods.static.static_method import Recorded, ScoredBatch, StaticMethod
from ted_stream.pruning.measures import Microbatch


def scored_batch(
    batch: Any,
    outputs: Any,
    *,
    size: int,
    model: nn.Module | None = None,
    forward: Callable[[Any], Any] | None = None,
    **microbatch: Any,
) -> ScoredBatch:
    """A batch of a scoring pass, of which outputs are known."""
    return ScoredBatch(
        microbatch=Microbatch(
            batch=batch, outputs=outputs, loss=torch.zeros(()), size=size, **{"shifted": False, **microbatch}
        ),
        model=nn.Identity() if model is None else model,
        forward=(lambda _: outputs) if forward is None else forward,
    )


def record(method: StaticMethod, passes: Sequence[Sequence[ScoredBatch]]) -> Recorded:
    """What passes of batches record, as a caller would keep it: the columns of the last pass."""
    columns: dict[str, NDArray[np.float32]] = {}
    for epoch, batches in enumerate(passes, 1):
        start, parts = 0, []
        for scored in batches:
            rows = slice(start, start + scored.microbatch.size)
            before = {name: column[rows] for name, column in columns.items()}
            parts.append(_written(method.of_batch(scored, before, epoch), scored.microbatch.size))
            start = rows.stop
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Recorded(columns=columns)


def _written(columns: Mapping[str, Tensor], size: int) -> dict[str, NDArray[np.float32]]:
    for name, column in columns.items():
        assert column.dtype == torch.float32, name
        assert len(column) == size, name
        assert not column.requires_grad, name
    return {name: column.numpy() for name, column in columns.items()}


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    """Logits of a model that has learnt something."""
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
