"""Every registered static method keeps the contract; what does not keep it is found."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ted_stream.methods.static import (
    AUM,
    CD,
    CRAIG,
    DP,
    DUAL,
    EL2N,
    GLISTER,
    IFD,
    STATIC_METHODS,
    TDDS,
    TEDS,
    DeepFool,
    Entropy,
    Forgetting,
    GraNd,
    LeastConfidence,
    Margin,
    ReferenceLoss,
    Scored,
    StaticMethod,
    TrajectoryScore,
    Uniform,
)
from ted_stream.testing import METHOD_CHECKS, STATIC_METHOD_CHECKS, check_covered, check_static_method
from ted_stream.testing.methods import chooses_alike_on_any_number_of_ranks

EXAMPLES: dict[str, tuple[StaticMethod | TrajectoryScore, ...]] = {
    "aum": (AUM(), AUM(keep="hardest")),
    "cd": (CD(),),
    "craig": (CRAIG(), CRAIG(block=9)),
    "deepfool": (DeepFool(), DeepFool(steps=3, classes=None)),
    "dp": (DP(), DP(features=4, damping=0.1, pool=8)),
    "dual": (DUAL(), DUAL(epochs=4, window=2)),
    "el2n": (EL2N(),),
    "entropy": (Entropy(),),
    "forgetting": (Forgetting(),),
    "glister": (GLISTER(), GLISTER(validation=0.5, learning_rate=0.0, per_step=3)),
    "grand": (GraNd(), GraNd(gradient="full")),
    "ifd": (IFD(),),
    "least_confidence": (LeastConfidence(),),
    "margin": (Margin(),),
    "reference_loss": (ReferenceLoss(), ReferenceLoss(keep="lowest")),
    "tdds": (TDDS(), TDDS(epochs=4, window=3, beta=0.5)),
    "teds": (TEDS(), TEDS(site="output", alpha=0.5, relative=True)),
    "uniform": (Uniform(),),
}
EVERY = [method for examples in EXAMPLES.values() for method in examples]
CHECKED = [
    pytest.param(
        method,
        check,
        # One of them is enough where it is quick.
        marks=[pytest.mark.long]
        if check is chooses_alike_on_any_number_of_ranks and method is not EXAMPLES["aum"][0]
        else [],
    )
    for method in EVERY
    for check in (METHOD_CHECKS if isinstance(method, TrajectoryScore) else STATIC_METHOD_CHECKS)
]


def test_every_method_has_examples() -> None:
    check_covered(STATIC_METHODS, EXAMPLES)


@pytest.mark.parametrize(("method", "check"), CHECKED, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_keeps(method: StaticMethod | TrajectoryScore, check: Callable[..., None]) -> None:
    check(method)


@dataclass(frozen=True, kw_only=True)
class Wide(EL2N):
    """Writes another dtype."""

    def of_batch(self, scored, before, epoch):
        return {name: value.double() for name, value in super().of_batch(scored, before, epoch).items()}


@dataclass(frozen=True, kw_only=True)
class OfBatch(EL2N):
    """Looks at the other samples of its batch."""

    def of_batch(self, scored, before, epoch):
        return {name: value - value.mean() for name, value in super().of_batch(scored, before, epoch).items()}


@dataclass(frozen=True, kw_only=True)
class Changing(EL2N):
    """Changes the surrogate."""

    def of_batch(self, scored, before, epoch):
        with torch.no_grad():
            next(scored.model.parameters()).add_(1)
        return super().of_batch(scored, before, epoch)


@dataclass(frozen=True, kw_only=True)
class Drawing(EL2N):
    """Scores differently every time."""

    def score(self, recorded, *, keep, seed):
        del keep, seed
        return Scored(scores=np.random.default_rng().random(len(recorded)).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Writing(EL2N):
    """Writes into what was recorded."""

    def score(self, recorded, *, keep, seed):
        recorded.columns["score"][:] = 0
        return super().score(recorded, keep=keep, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Unlabelled(CRAIG):
    """Makes up labels that are missing, and takes too many."""

    def score(self, recorded, *, keep, seed):
        scored = Uniform().score(recorded, keep=keep, seed=seed)
        return Scored(scores=np.round(scored.scores))


@dataclass(frozen=True, kw_only=True)
class Losing(EL2N):
    """Leaves a sample out, and says nothing."""

    def score(self, recorded, *, keep, seed):
        scored = super().score(recorded, keep=keep, seed=seed)
        return replace(scored, left_out=scored.scores == scored.scores.max())


@dataclass(frozen=True, kw_only=True)
class Missing(EL2N):
    """Has no score for a sample that it does not leave out."""

    def score(self, recorded, *, keep, seed):
        scored = super().score(recorded, keep=keep, seed=seed)
        worst = scored.scores == scored.scores.max()
        return Scored(scores=np.where(worst, np.float32(np.nan), scored.scores), left_out=np.zeros_like(worst), note="")


@dataclass(frozen=True, kw_only=True)
class Lax(EL2N):
    """Takes any setting."""

    power: float = 1.0


FAULTY = {
    Wide: "is written as torch.float64",
    OfBatch: "in batches of 1",
    Changing: "changes '0.weight' of the surrogate",
    Drawing: "scored again, scores are others",
    Writing: "read-only",
    Unlabelled: "a sample that is left out scores",
    Losing: "no note says why",
    Missing: "a sample that is not left out is not finite",
    Lax: "is accepted; check it in __post_init__",
}


@pytest.mark.parametrize("cls", FAULTY, ids=lambda cls: cls.__name__)
def test_what_a_method_does_not_keep_is_found(cls: type[EL2N]) -> None:
    with pytest.raises((AssertionError, ValueError), match=FAULTY[cls]):
        check_static_method(cls())


def test_a_method_that_makes_up_labels_is_found() -> None:
    check = next(check for check in STATIC_METHOD_CHECKS if check.__name__ == "refuses_what_it_cannot_score")
    with pytest.raises(AssertionError, match="needs a count, and scores without"):
        check(Unlabelled())
