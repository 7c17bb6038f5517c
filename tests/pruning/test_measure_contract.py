"""Every registered measure keeps the contract."""

import pytest
import torch
from torch import Tensor

from ted_stream.pruning.measures import (
    MEASURES,
    Correct,
    Entropy,
    ErrorNorm,
    LastLayerGradient,
    LogitMargin,
    Loss,
    Margin,
    MaskGradient,
    Measure,
    Microbatch,
    TrueProbability,
)
from ted_stream.testing import Formula, check_covered, check_measure


def _margin(p: Tensor, y: Tensor, f: Tensor) -> Tensor:
    first, second = p.sort(descending=True).values[:2]
    return first - second


# Of the predicted p, the target's one-hot y, and the features f of one position.
FORMULAS: dict[Measure, Formula | None] = {
    LogitMargin(): lambda p, y, f: p.log()[y.argmax()] - p.log()[y == 0].max(),
    Correct(): lambda p, y, f: p.argmax() == y.argmax(),
    Entropy(): lambda p, y, f: -(p * p.log()).sum(),
    ErrorNorm(): lambda p, y, f: (p - y).norm(),
    LastLayerGradient(): lambda p, y, f: torch.outer(p - y, torch.cat([f, torch.ones(1)])).norm(),
    Loss(): lambda p, y, f: -(y * p.log()).sum(),
    Margin(): _margin,
    TrueProbability(): lambda p, y, f: (p * y).sum(),
    **{MaskGradient(site, norm): None for site in ("input", "features", "output") for norm in (None, 1, 2)},
}


def _examples() -> dict[str, list[Measure]]:
    named: dict[str, list[Measure]] = {}
    for measure in FORMULAS:
        name = next(name for name, kind in MEASURES.items() if kind is type(measure))
        named.setdefault(name, []).append(measure)
    return named


def test_every_measure_has_examples() -> None:
    check_covered(MEASURES, _examples())


def test_a_measure_without_an_example_fails_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgotten(Margin):
        pass

    monkeypatch.setitem(MEASURES, "forgotten", Forgotten)
    with pytest.raises(AssertionError, match="forgotten"):
        test_every_measure_has_examples()


@pytest.mark.parametrize("measure", FORMULAS, ids=repr)
def test_keeps(measure: Measure) -> None:
    check_measure(measure, FORMULAS[measure])


class OfTheBatch(Margin):
    """Hangs on who else is in the batch."""

    def values(self, microbatch: Microbatch) -> Tensor:
        values = super().values(microbatch)
        return values - values.mean()


def test_what_is_wrong_is_found() -> None:
    with pytest.raises(AssertionError, match="in microbatches"):
        check_measure(OfTheBatch())
    with pytest.raises(AssertionError, match="classifier: Tensor-likes are not close"):
        check_measure(Entropy(), FORMULAS[Margin()])
