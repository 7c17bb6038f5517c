"""The contract of methods bites: each of these keeps all of it but for one thing."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from ted_stream.methods import Chosen, Method, RandomPruning, ScheduledMethod
from ted_stream.pruning import ExponentialMean, HighestScores, Owned
from ted_stream.testing import METHOD_CHECKS, check_method


@dataclass(frozen=True, kw_only=True)
class Sound(ScheduledMethod):
    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        assert k is not None
        return Chosen(owned.select(HighestScores(), k))


@dataclass(frozen=True, kw_only=True)
class Remembers(Sound):
    """A mutable field, out of the repr."""

    calls: Any = field(default_factory=list, repr=False, compare=False)

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        self.calls.append(epoch)
        assert k is not None
        return Chosen(owned.top_k(owned.uniform().astype(np.float32) * (-1) ** len(self.calls), k))


class Hidden(Sound):
    seen: ClassVar[list[int]] = []

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        self.seen.append(epoch)
        assert k is not None
        return Chosen(owned.top_k(owned.uniform().astype(np.float32) * (-1) ** len(self.seen), k))


class ByPlace(Sound):
    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        assert k is not None
        return Chosen(owned.top_k(-np.arange(len(owned), dtype=np.float32), k))


class OneTooMany(Sound):
    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        assert k is not None
        return Chosen(owned.select(HighestScores(), min(k + 1, owned.num_samples)))


class Overwrites(Sound):
    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        chosen = super().choose(owned, epoch, k)
        owned.scores[chosen.keep] = 0
        return chosen


class ForgetsTheUnmeasured(Sound):
    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        assert k is not None
        return Chosen(owned.top_k(owned.scores, k))


class WeighsZero(Sound):
    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> Any:
        return 0.0


class WeighsUnasked(Sound):
    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> Any:
        return np.ones(np.count_nonzero(chosen.keep), np.float32)


class SumsInFloat(Sound):
    """A mean whose last bits hang on the ranks."""

    weighs_samples = True

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> Any:
        weights = (0.1 + np.nan_to_num(owned.scores[chosen.keep], nan=1.0)).astype(np.float32)
        return weights / np.float32(max(1e-3, float(weights.sum())))


@dataclass(frozen=True, kw_only=True)
class Unchecked(Sound):
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Unnamed(Sound):
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.share, float) or not 0 < self.share < 1:
            raise ValueError("a setting is wrong")


@dataclass(frozen=True, kw_only=True)
class NotPlain(Sound):
    mean: ExponentialMean = field(default_factory=ExponentialMean)


@dataclass(frozen=True, kw_only=True, repr=False)
class WithoutRepr(Sound):
    def __repr__(self) -> str:
        return f"WithoutRepr({self.prune_ratio})"


class KeepsNothing(Sound):
    def keep_ratio(self, epoch: int, num_epochs: int) -> float:
        return 0.0 if epoch == 1 else 1.0


FAULTY: dict[str, Method] = {
    "choose.* otherwise": Hidden(0.5),
    "calls is .* keep settings": Remembers(0.5),
    "ranks choose otherwise": ByPlace(0.5),
    "asked were": OneTooMany(0.5),
    "changes column 'score'": Overwrites(0.5),
    "NaN": ForgetsTheUnmeasured(0.5),
    "not finite and above 0": WeighsZero(0.5),
    "weighs_samples = True": WeighsUnasked(0.5),
    "[23] ranks choose otherwise than one": SumsInFloat(0.5),
    "share=.* is accepted": Unchecked(0.5),
    "share=.* without its name": Unnamed(0.5),
    "mean is .* keep settings": NotPlain(0.5),
    "the repr gives": WithoutRepr(0.5, annealing=0.5),
    r"keep_ratio\(1, 2\) is 0.0": KeepsNothing(0.5),
}


@pytest.mark.parametrize("words", FAULTY)
def test_a_fault_is_found(words: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=words):
        check_method(FAULTY[words])


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_what_the_faulty_ones_are_made_of_is_sound(check: Callable[[Method], None]) -> None:
    check(Sound(0.5))
    check(replace(RandomPruning(0.5), annealing=0.0))
