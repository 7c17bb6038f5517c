"""The contract of methods bites: each of these keeps all of it but for one thing."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ted_stream.engine.choosing import choose_skip_list
from ted_stream.engine.plan import RunPlan
from ted_stream.methods import TED, Chosen, ImportanceSampling, InfoBatch, Method, RandomPruning, ScheduledMethod
from ted_stream.pruning import Communicator, ExponentialMean, HighestScores, Owned, ScoreStore
from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout
from ted_stream.testing import METHOD_CHECKS, check_method
from ted_stream.testing.threads import run_ranks


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


@pytest.mark.long
@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_what_the_faulty_ones_are_made_of_is_sound(check: Callable[[Method], None]) -> None:
    check(Sound(0.5))
    check(replace(RandomPruning(0.5), annealing=0.0))


# What the engine refuses, on every rank, of methods that nobody has checked


def chosen_by(method: Method, *, num_samples: int = 10, ranks: int = 1) -> list[tuple[Any, ...] | str]:
    """What every rank gets for epoch 1 of 4, or what it is told."""
    layout = DatasetLayout(streams=(StreamLayout(shards=(ShardLayout(name="a", size=1, samples=num_samples),)),))

    def work(communicator: Communicator) -> tuple[Any, ...] | str:
        store = ScoreStore(num_samples, method.running(), communicator=communicator)
        plan = RunPlan(method=method, num_samples=num_samples, epochs=4)
        try:
            return choose_skip_list(plan, Owned(store, epoch=1, seed=0), layout, "run")
        except ValueError as error:
            return str(error)

    return run_ranks(ranks, work)


@dataclass(frozen=True, kw_only=True)
class Gives(Sound):
    """Whatever it is told to, on rank 0 or on all ranks; elsewhere what it must."""

    weighs_samples = True

    choice: Any = None
    weight: Any = None
    everywhere: bool = True

    def _is_faulty(self, owned: Owned) -> bool:
        return self.everywhere or owned.first_id == 0

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        sound = super().choose(owned, epoch, k)
        return self.choice(sound.keep) if self.choice and self._is_faulty(owned) else sound

    def weigh(self, owned: Owned, chosen: Chosen, ratio: float) -> Any:
        sound = np.full(np.count_nonzero(chosen.keep), 2.0, np.float32)
        return self.weight(sound) if self.weight and self._is_faulty(owned) else sound


CHOICES: dict[str, Any] = {
    "a NoneType, not a Chosen": lambda keep: None,
    "a ndarray, not a Chosen": lambda keep: keep,
    "keep as a list": lambda keep: Chosen(keep.tolist()),
    "keep as a NoneType": lambda keep: Chosen(None),  # pyright: ignore[reportArgumentType]
    "keep as a Tensor": lambda keep: Chosen(torch.from_numpy(keep)),  # pyright: ignore[reportArgumentType]
    "keep of shape .* int8, not": lambda keep: Chosen(keep.astype(np.int8)),
    "keep of shape .* bool, not": lambda keep: Chosen(keep[:-1]),
}
WEIGHTS: dict[str, Any] = {
    "type NoneType": lambda weights: None,
    "type str": lambda weights: "0.5",
    "type bool": lambda weights: True,
    "type list": lambda weights: weights.tolist(),
    "type Tensor": lambda weights: torch.from_numpy(weights),
    "float16, not .* float32": lambda weights: weights.astype(np.float16),
    "float64, not .* float32": lambda weights: weights.astype(np.float64),
    "float32, not .* float32": lambda weights: np.append(weights, np.float32(1)),
    "such as 0.0": lambda weights: 0 * weights,
    "such as -2.0": lambda weights: -weights,
    "such as nan": lambda weights: np.nan * weights,
    "such as inf": lambda weights: np.float32(np.inf) * weights,
    "the weight 0 ": lambda weights: 0,
    "the weight -1.5": lambda weights: -1.5,
    "the weight nan": lambda weights: float("nan"),
    "the weight inf": lambda weights: np.float32(np.inf),
}


@pytest.mark.parametrize("words", [*CHOICES, *WEIGHTS])
def test_what_a_method_must_not_give_is_refused_on_every_rank(words: str) -> None:
    fault = {"choice": CHOICES[words]} if words in CHOICES else {"weight": WEIGHTS[words]}
    (alone,) = chosen_by(Gives(0.5, **fault))
    assert isinstance(alone, str)
    assert re.search(rf"gave .*{words}.*Mend the method", alone)
    first, *others = chosen_by(Gives(0.5, **fault, everywhere=False), ranks=3)
    assert isinstance(first, str)
    assert re.search(words, first)
    assert all("on rank 0" in str(other) for other in others)


def test_ranks_must_give_the_same_kind_of_weight() -> None:
    for weight, words in ((lambda weights: 2.0, "2.0, an array"), (lambda weights: 3, "3.0, an array")):
        for told in chosen_by(Gives(0.5, weight=weight, everywhere=False), ranks=2):
            assert f"the ranks different weights: {words}" in str(told)


def test_what_a_method_may_give() -> None:
    for weight in (1, 1.0, np.float32(1), np.float64(1), 3):
        for result in chosen_by(Gives(0.5, weight=lambda _, weight=weight: weight), ranks=2):
            assert not isinstance(result, str)
            assert (result[0].weights, result[1]) == (None, float(weight))
    for result in chosen_by(Gives(0.5), ranks=3):
        assert not isinstance(result, str)
        assert result[0].weights is not None
        assert (result[0].weights == 2).all()
        assert result[1] == 1


@pytest.mark.parametrize("num_samples", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "method", [TED(0.3), RandomPruning(0.3, loss_correction=True), ImportanceSampling(0.3), InfoBatch(0.3)]
)
def test_where_all_samples_are_kept_they_weigh_1(method: Method, num_samples: int) -> None:
    (result,) = chosen_by(method, num_samples=num_samples)
    assert not isinstance(result, str)
    skip_list, factor, _ = result
    ratio = method.keep_ratio(1, 4)
    if skip_list.num_kept == num_samples:
        assert factor == 1
        assert skip_list.weights is None
    elif isinstance(method, (TED, RandomPruning)):
        assert ratio is not None
        assert factor == 1 / ratio
    if ratio is not None:
        assert skip_list.keep_ratio == ratio
