"""What every measure keeps: a check each, and all of them."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ted_stream.pruning.measures import Measure
from ted_stream.pruning.probe import StepProbe

__all__ = ["MEASURE_CHECKS", "Formula", "check_measure", "follows_its_formula"]

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A measure of one position, of its p = softmax(z) (C,), its one-hot target y (C,), its features f (D,), in float64."""

_B, _CLASSES, _LENGTH = 8, 5, 7
_EPSILON = 1e-5


def check_measure(measure: Measure, formula: Formula | None = None, *, of_tokens: bool = True) -> None:
    """Check all that is asked of a measure, on a classifier and on a language model.

    Args:
        measure: with any settings.
        formula: what it must equal; the mean over a sample's own tokens for language models. Mask gradients are held
            against finite differences instead.
        of_tokens: whether it exists for language models.

    Raises:
        AssertionError: saying what it does not keep.
    """
    rebuilds_itself(measure)
    for case in _cases(of_tokens):
        for check in MEASURE_CHECKS:
            check(measure, case)
        follows_its_formula(measure, case, formula)


# Models whose parts can be run one by one


class Case(nn.Module):
    """A classifier of x (B, 6), in three parts: what enters, the features, the logits."""

    name = "classifier"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.Tanh())
        self.head = nn.Linear(9, _CLASSES)

    def batch(self, size: int) -> Any:
        """The first samples are the same at every size."""
        generator = torch.Generator().manual_seed(3)
        x = torch.stack([torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(size)])
        return x.to(self.head.weight.dtype), torch.arange(size) * 3 % _CLASSES

    def entering(self, batch: Any) -> Tensor:
        """(B, …), where a mask at the input sits."""
        return batch[0]

    def forward(self, batch: Any) -> Tensor:
        """(B, …, C) logits."""
        return self.head(self.body(self.entering(batch)))

    def positions(self, logits: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """(B, P, C) logits and (B, P) targets, -100 where there is none."""
        return logits.unsqueeze(1), batch[1].unsqueeze(1)


class Tokens(Case):
    """A language model of token sequences (B, 7), whose labels are shifted; some have none."""

    name = "language model"
    shift_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_CLASSES, 6)

    def batch(self, size: int) -> Any:
        """Prompts of different lengths, and answers."""
        generator = torch.Generator().manual_seed(4)
        ids = torch.stack([torch.randint(_CLASSES, (_LENGTH,), generator=generator) for _ in range(size)])
        labels = ids.clone()
        for row in range(size):
            labels[row, : row % 5] = -100
        return {"input_ids": ids, "labels": labels}

    def entering(self, batch: Any) -> Tensor:
        """(B, T, 6) embeddings."""
        return self.embedding(batch["input_ids"])

    def positions(self, logits: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Position t predicts label t + 1."""
        return logits[:, :-1], batch["labels"][:, 1:]


def _cases(of_tokens: bool) -> Iterator[Case]:
    for build in (Case, Tokens) if of_tokens else (Case,):
        yield _made(build)


def _made(build: Callable[[], Case], dtype: torch.dtype = torch.float64) -> Case:
    torch.manual_seed(0)
    return build().double().to(dtype)


def _mean_loss(case: Case, outputs: Tensor, batch: Any) -> Tensor:
    logits, targets = case.positions(outputs, batch)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _rows(batch: Any, rows: slice) -> Any:
    if isinstance(batch, dict):
        return {name: tensor[rows] for name, tensor in batch.items()}
    return tuple(tensor[rows] for tensor in batch)


def _measured(
    measure: Measure | None,
    case: Case,
    size: int = _B,
    *,
    microbatch: int | None = None,
    factor: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """What one training step measures, of the loss times a factor; gradients stay in the parameters."""
    probe = StepProbe(measure, weighted=weights is not None, loss=lambda outputs, part: _mean_loss(case, outputs, part))
    probe.attach(case)
    case.zero_grad()
    batch, found = case.batch(size), []
    for start in range(0, size, microbatch or size):
        rows = slice(start, min(start + (microbatch or size), size))
        part = probe.before_forward(_rows(batch, rows), None if weights is None else weights[rows])
        outputs = case(part)
        loss = _mean_loss(case, outputs, part)
        probe.before_backward(part, outputs, loss)
        (loss * factor * (rows.stop - rows.start) / size).backward()
        found.append(probe.after_backward())
    probe.check()
    probe.detach()
    return torch.empty(0) if measure is None else torch.cat(found)


# The checks


def rebuilds_itself(measure: Measure) -> None:
    """It is frozen and hashable, and its repr, evaluated beside its class, equals it."""
    assert is_dataclass(measure), f"{type(measure).__name__} is no dataclass; decorate it with @dataclass(frozen=True)"
    for field in fields(measure):
        try:
            setattr(measure, field.name, getattr(measure, field.name))
        except FrozenInstanceError:
            continue
        raise AssertionError(f"{field.name} can be assigned; decorate the class with @dataclass(frozen=True)")
    again = eval(repr(measure), dict(vars(sys.modules[type(measure).__module__])))
    assert again == measure, f"the repr gives {again!r}, which differs from {measure!r}"
    assert hash(again) == hash(measure)


def gives_a_number_per_sample(measure: Measure, case: Case) -> None:
    """(B,), finite, detached, in the precision of the model."""
    for dtype in (torch.float64, torch.float32):
        found = _measured(measure, _made(type(case), dtype))
        assert found.shape == (_B,), f"{case.name}: shape {tuple(found.shape)} for {_B} samples"
        assert found.dtype == dtype, f"{case.name}: {found.dtype} of a {dtype} model"
        assert not found.requires_grad
        assert found.isfinite().all()


def hangs_on_the_sample_alone(measure: Measure, case: Case) -> None:
    """The same at every batch and microbatch size, whatever the loss is multiplied by, and however samples weigh."""
    expected = _measured(measure, case)
    weights = torch.linspace(0.25, 3.0, _B, dtype=torch.float64)
    variants = {
        "in microbatches": _measured(measure, case, microbatch=3),
        "in a larger batch": _measured(measure, case, 3 * _B)[:_B],
        "of a scaled loss": _measured(measure, case, factor=1024.0, microbatch=5),
        "of weighted samples": _measured(measure, case, weights=weights),
    }
    for name, found in variants.items():
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{case.name}, {name}: {text}"
        )


def leaves_gradients_alone(measure: Measure, case: Case) -> None:
    """To the bit."""

    def gradients() -> list[Tensor | None]:
        return [None if parameter.grad is None else parameter.grad.clone() for parameter in case.parameters()]

    _measured(None, case, microbatch=3)
    expected = gradients()
    _measured(measure, case, microbatch=3)
    for found, plain in zip(gradients(), expected, strict=True):
        assert found is plain is None or (found is not None and plain is not None and torch.equal(found, plain))


def follows_its_formula(measure: Measure, case: Case, formula: Formula | None) -> None:
    """It equals a formula, one position at a time; a mask gradient, finite differences of the sample's own loss."""
    batch = case.batch(_B)
    with torch.no_grad():
        if measure.site is not None:
            expected = _finite_differences(measure.site, measure.norm, case, batch)
        elif formula is not None:
            expected = _by_formula(formula, case, batch)
        else:
            return
    tolerance = 1e-6 if measure.site is not None else 1e-10
    torch.testing.assert_close(
        _measured(measure, case), expected, rtol=tolerance, atol=1e-9, msg=lambda text: f"{case.name}: {text}"
    )


def _by_formula(formula: Formula, case: Case, batch: Any) -> Tensor:
    features = case.body(case.entering(batch))
    logits, targets = case.positions(case.head(features), batch)
    features = features.reshape(_B, -1, features.shape[-1])
    values = []
    for row in range(_B):
        own = []
        for at in range(targets.shape[1]):
            if targets[row, at] != -100:
                y = F.one_hot(targets[row, at], _CLASSES).double()
                own.append(formula(logits[row, at].softmax(0), y, features[row, at]).double())
        values.append(torch.stack(own).mean())
    return torch.stack(values)


def _finite_differences(site: str, norm: int | None, case: Case, batch: Any) -> Tensor:
    """|∂ℓ_k/∂δ_k| of a scalar mask, or the norm of x_k ⊙ ∂ℓ_k/∂x_k, by central differences."""
    stages: list[Callable[[Tensor], Tensor]] = [case.body, case.head]
    skipped = ("input", "features", "output").index(site)
    at_site = case.entering(batch)
    for stage in stages[:skipped]:
        at_site = stage(at_site)

    def own_losses(tensor: Tensor) -> Tensor:
        for stage in stages[skipped:]:
            tensor = stage(tensor)
        logits, targets = case.positions(tensor, batch)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return losses.sum(1) / (targets != -100).sum(1)

    def derivative(mask: Tensor) -> Tensor:
        up, down = own_losses(at_site * (1 + _EPSILON * mask)), own_losses(at_site * (1 - _EPSILON * mask))
        return (up - down) / (2 * _EPSILON)

    if norm is None:
        return derivative(torch.ones_like(at_site)).abs()
    entries = at_site[0].numel()
    columns = [
        derivative(F.one_hot(torch.tensor(at), entries).double().view(at_site[0].shape)) for at in range(entries)
    ]
    return torch.linalg.vector_norm(torch.stack(columns, 1), norm, dim=1)


MEASURE_CHECKS: tuple[Callable[[Measure, Case], None], ...] = (
    gives_a_number_per_sample,
    hangs_on_the_sample_alone,
    leaves_gradients_alone,
)
