"""What every static method keeps: in its value, in what it writes of samples, and in the scores that it makes of it."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ted_stream.methods.static import Recorded, Scored, ScoredBatch, StaticMethod, TrajectoryScore, choose_subset
from ted_stream.pruning.batches import IGNORE_INDEX
from ted_stream.pruning.measures import Microbatch
from ted_stream.testing.methods import (
    METHOD_CHECKS,
    has_plain_settings,
    rebuilds_itself,
    rebuilt,
    refuses_wrong_settings,
)

__all__ = ["STATIC_METHOD_CHECKS", "check_static_method"]

_N, _FEATURES, _CLASSES, _SEED = 61, 6, 3, 11
_TOKENS, _BOS = 13, 1
_EPOCHS = 3  # passes of a method that needs one every epoch and does not say how many


def check_static_method(method: StaticMethod | TrajectoryScore) -> None:
    """Hold a static method against all that every static method keeps.

    Args:
        method: with the settings to check.

    Raises:
        AssertionError: saying what it does not keep.
    """
    checks: Any = METHOD_CHECKS if isinstance(method, TrajectoryScore) else STATIC_METHOD_CHECKS
    for check in checks:
        check(method)


# Its value


def is_a_plain_value(method: StaticMethod) -> None:
    """It is frozen and hashable, its repr rebuilds it, its settings are plain, and wrong ones are refused by name."""
    value: Any = method
    for check in (rebuilds_itself, has_plain_settings, refuses_wrong_settings):
        check(value)


# What it writes


class _LanguageModel(nn.Module):
    """A small causal language model: position i predicts token i + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_TOKENS, 8)
        self.hidden = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, _TOKENS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(ids))[0])


def _surrogate(method: StaticMethod, epoch: int) -> nn.Module:
    """A small network as of an epoch, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        layers = [nn.Linear(_FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, _CLASSES)]
        model = _LanguageModel() if method.needs_tokens else nn.Sequential(*layers)
        for _ in range(epoch):
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def _samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(_SEED)
    labels = torch.arange(_N) % _CLASSES
    return torch.randn(_N, _FEATURES, generator=generator) + labels[:, None], labels


def _tokens() -> tuple[Tensor, Tensor]:
    """Samples of a first token, a prompt and an answer, padded on the right; some have no answer."""
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(2, _TOKENS, (_N, 12), generator=generator)
    ids[:, 0] = _BOS
    at, number = torch.arange(12), torch.arange(_N)[:, None]
    begin = 2 + number % 3
    return ids, ids.where((at >= begin) & (at < begin + number % 8), IGNORE_INDEX)


def _scored_tokens(model: nn.Module, ids: Tensor, labels: Tensor) -> ScoredBatch:
    def forward(given: Any) -> Tensor:
        return model(given["input_ids"])

    # As a collator pads.
    length = max([5, *((labels != IGNORE_INDEX).any(0).nonzero() + 1)])
    batch = {"input_ids": ids[:, :length], "labels": labels[:, :length]}
    microbatch = Microbatch(batch=batch, outputs=forward(batch), loss=torch.zeros(()), size=len(ids), shifted=True)
    return ScoredBatch(microbatch=microbatch, model=model, forward=forward, bos_id=_BOS)


def _scored_batch(method: StaticMethod, model: Any, batch: list[Tensor]) -> ScoredBatch:
    if method.needs_tokens:
        return _scored_tokens(model, *batch)

    def forward(given: Any) -> Tensor:
        return model(given[0])

    def loss(outputs: Tensor, given: Any) -> Tensor:
        return cross_entropy(outputs, given[1])

    outputs, features, mean = None, None, torch.zeros(())
    if method.needs_surrogate:
        outputs = forward(batch)
        features = model[:-1](batch[0]) if method.needs_features else None
        mean = loss(outputs, batch)
    microbatch = Microbatch(
        batch=batch,
        outputs=outputs,
        loss=mean,
        size=len(batch[1]),
        shifted=False,
        loss_function=loss,
        features=features,
        has_bias=features is not None,
    )
    return ScoredBatch(microbatch=microbatch, model=model, forward=forward)


@torch.no_grad()
def _record(method: StaticMethod, *, batch_size: int) -> Recorded:
    """What passes over the samples write."""
    inputs, labels = _tokens() if method.needs_tokens else _samples()
    epochs = getattr(method, "epochs", _EPOCHS) if method.passes_every_epoch else 1
    columns: dict[str, NDArray[np.float32]] = {}
    for epoch in range(1, epochs + 1):
        model, parts, shapes = _surrogate(method, epoch), [], set()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for rows in torch.arange(_N).split(batch_size):
            known = {name: column[rows.numpy()] for name, column in columns.items()}
            scored = _scored_batch(method, model, [inputs[rows], labels[rows]])
            part = _checked_part(method, method.of_batch(scored, known, epoch), len(rows))
            shapes.add(tuple((name, column.shape[1:]) for name, column in part.items()))
            parts.append(part)
        assert len(shapes) == 1, f"of_batch() writes other columns of other batches: {shapes}"
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), f"of_batch() changes {name!r} of the surrogate"
        assert not model.training, "of_batch() leaves the surrogate in training mode"
        assert all(p.grad is None for p in model.parameters()), "of_batch() leaves gradients at the surrogate"
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    classes = None if method.needs_tokens else labels.numpy()
    return Recorded(columns=columns, labels=classes, has_bias=method.needs_features)


def _checked_part(method: StaticMethod, part: Mapping[str, Tensor], size: int) -> dict[str, NDArray[np.float32]]:
    assert part, f"{type(method).__name__} writes nothing, so that nothing says how many samples there are"
    for name, column in part.items():
        assert column.dtype is torch.float32, f"{name!r} is written as {column.dtype}, not as float32"
        assert len(column) == size, f"{name!r} has {len(column)} rows of a batch of {size}"
        assert not column.requires_grad, f"{name!r} is not detached"
    return {name: column.cpu().numpy().copy() for name, column in part.items()}


def writes_the_same_in_any_batches(method: StaticMethod) -> None:
    """Float32 rows, detached, of one shape; alike, up to rounding, however samples are batched; the model unchanged."""
    whole = _record(method, batch_size=_N)
    for batch_size in (1, 7):
        parts = _record(method, batch_size=batch_size)
        assert parts.columns.keys() == whole.columns.keys()
        for name, column in whole.columns.items():
            np.testing.assert_allclose(
                parts.columns[name], column, rtol=1e-4, atol=1e-5, err_msg=f"{name!r} in batches of {batch_size}"
            )


# Its scores


def _score(method: StaticMethod, recorded: Recorded, keep: int | None, seed: int = _SEED) -> Scored:
    scored = method.score(recorded, keep=keep, seed=seed)
    scores, weights, left_out = scored.scores, scored.weights, scored.left_out
    assert isinstance(scores, np.ndarray), f"scores are a {type(scores).__name__}"
    assert scores.dtype == np.float32, f"scores have dtype {scores.dtype}"
    assert scores.shape == (_N,), f"scores have shape {scores.shape} for {_N} samples"
    if left_out is None:
        assert np.isfinite(scores).all(), "a score is not finite"
    else:
        assert (left_out.dtype, left_out.shape) == (np.bool_, (_N,)), f"left_out is {left_out.dtype}{left_out.shape}"
        assert np.isfinite(scores[~left_out]).all(), "the score of a sample that is not left out is not finite"
        assert not np.isinf(scores).any(), "a score is infinite; of a sample without one it is NaN"
        assert scored.note, "samples may be left out, and no note says why"
    if weights is not None:
        assert weights.dtype == np.float32, f"weights have dtype {weights.dtype}"
        assert weights.shape == (_N,), f"weights have shape {weights.shape} for {_N} samples"
        assert (np.isfinite(weights) & (weights > 0)).all(), "a weight is not finite and above 0"
    return scored


def _same(one: Scored, other: Scored) -> bool:
    def are_equal(first: NDArray[Any] | None, second: NDArray[Any] | None) -> bool:
        if first is None or second is None:
            return first is second
        return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")

    return all(are_equal(getattr(one, name), getattr(other, name)) for name in ("scores", "weights", "left_out"))


def _keeps(method: StaticMethod) -> tuple[int | None, ...]:
    return (1, 7, _N // 2, _N) if method.needs_count else (None, 7, _N)


def scores_every_sample(method: StaticMethod) -> None:
    """One finite float32 score for each; the same again, by another object, and of files mapped into memory."""
    recorded = _record(method, batch_size=16)
    for column in recorded.columns.values():
        column.flags.writeable = False  # a change would be one of a file
    with tempfile.TemporaryDirectory() as folder:
        for name, column in recorded.columns.items():
            np.save(Path(folder) / f"{name}.npy", column)
        columns = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in recorded.columns}
        for keep in _keeps(method):
            first = _score(method, recorded, keep)
            assert _same(_score(method, recorded, keep), first), f"keep={keep}: scored again, scores are others"
            value: Any = method
            again: Any = rebuilt(value)
            assert _same(_score(again, recorded, keep), first), f"keep={keep}: another object scores otherwise"
            mapped = _score(method, replace(recorded, columns=columns), keep)
            assert _same(mapped, first), f"keep={keep}: columns that are mapped into memory are scored otherwise"
            _score(method, recorded, keep, seed=_SEED + 1)


def keeps_as_many_as_asked(method: StaticMethod) -> None:
    """The highest scores are the kept; of a method that chooses a set of a given size, exactly those of the set."""
    recorded = _record(method, batch_size=16)
    for keep in _keeps(method):
        if keep is None:
            continue
        scored = _score(method, recorded, keep)
        if scored.left_out is not None:
            keep = min(keep, int((~scored.left_out).sum()))
            assert keep, "all samples are left out"
        kept = choose_subset(scored.scores, keep, left_out=scored.left_out, seed=_SEED)
        assert kept.sum() == keep
        if method.needs_count and keep < _N:
            worst, others = scored.scores[kept].min(), scored.scores[~kept].max()
            assert worst > others, f"keep={keep}: a sample that is left out scores {others}, a kept one {worst}"


def refuses_what_it_cannot_score(method: StaticMethod) -> None:
    """Without a count or labels that it needs, it says so by a ValueError."""
    recorded = _record(method, batch_size=16)
    without = []
    if method.needs_count:
        without.append(("a count", recorded, None))
    if method.needs_labels:
        without.append(("labels", replace(recorded, labels=None), 7))
    for what, given, keep in without:
        try:
            method.score(given, keep=keep, seed=_SEED)
        except ValueError:
            continue
        raise AssertionError(f"{type(method).__name__} needs {what}, and scores without; raise a ValueError")


STATIC_METHOD_CHECKS: tuple[Callable[[StaticMethod], None], ...] = (
    is_a_plain_value,
    writes_the_same_in_any_batches,
    scores_every_sample,
    keeps_as_many_as_asked,
    refuses_what_it_cannot_score,
)
