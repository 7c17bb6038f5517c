"""What every method keeps in its value and in its choices, a check each."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.engine.given import Given
from ted_stream.methods import Method
from ted_stream.pruning import Communicator, Measurements, Owned, ScoreStore, num_kept
from ted_stream.pruning.measures import Measure
from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout
from ted_stream.testing.threads import run_ranks

__all__ = ["CHOICE_CHECKS", "METHOD_CHECKS", "POPULATIONS", "VALUE_CHECKS", "Population"]

_EPOCHS = 5
_SEED = 11


# Its value


def rebuilds_itself(method: Method) -> None:
    """It is frozen and hashable, and its repr, evaluated beside its class, equals it."""
    assert is_dataclass(method), f"{type(method).__name__} is no dataclass; decorate it with @dataclass(frozen=True)"
    for field in fields(method):
        try:
            setattr(method, field.name, getattr(method, field.name))
        except FrozenInstanceError:
            continue
        raise AssertionError(f"{field.name} can be assigned; decorate the class with @dataclass(frozen=True)")
    again = rebuilt(method)
    assert again == method, f"the repr gives {again!r}, which differs from {method!r}"
    assert hash(again) == hash(method)
    assert repr(again) == repr(method)


def has_plain_settings(method: Method) -> None:
    """Its fields are Python's own numbers, words, flags and None, as checkpoints and run.json hold them."""
    for field in fields(method):
        value = getattr(method, field.name)
        assert type(value) in (bool, int, float, str, type(None)), (
            f"{field.name} is {value!r}, a {type(value).__name__}; keep settings as Python's own numbers or words"
        )


def refuses_wrong_settings(method: Method) -> None:
    """A setting of a wrong type or value is refused at construction, by its name."""
    for field in fields(method):
        value = getattr(method, field.name)
        wrong: list[object] = [object(), [value]]
        if isinstance(value, float):
            wrong += [float("nan"), "much", True]
        if isinstance(value, bool):
            wrong += ["no", None, 2]
        if isinstance(value, str):
            wrong += [1.5, "a word that it cannot know"]
        for one in wrong:
            refusal = _refusal(method, field.name, one)
            assert refusal is not None, f"{field.name}={one!r} is accepted; check it in __post_init__"
            assert field.name in refusal, f"{field.name}={one!r} is refused without its name: {refusal}"


def _refusal(method: Method, name: str, value: object) -> str | None:
    try:
        replace(method, **{name: value})
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def keeps_a_ratio(method: Method) -> None:
    """Its keep ratio lies in (0, 1], or it decides in the epoch itself."""
    for num_epochs in (1, 2, 3, 10, 90):
        for epoch in range(num_epochs):
            ratio = method.keep_ratio(epoch, num_epochs)
            assert ratio is None or 0 < ratio <= 1, f"keep_ratio({epoch}, {num_epochs}) is {ratio!r}"
            assert rebuilt(method).keep_ratio(epoch, num_epochs) == ratio


def measures_anew(method: Method) -> None:
    """It measures nothing, or gives a measure; measures and running scores of two runs are equal but not one."""
    first, second = method.measure(), method.measure()
    assert first is None or isinstance(first, Measure), f"measure() gives {first!r}"
    assert first == second
    running = method.running()
    names = running.columns
    assert all(isinstance(name, str) for name in names), f"columns are {names!r}"
    columns = {name: np.full(3, np.nan, np.float32) for name in names}
    running.fold(columns, np.array([2], np.int64), np.array([0.5]), 0)
    scores = running.scores(columns)
    assert scores.dtype == np.float32
    assert np.isnan(scores).tolist() == [True, True, False], "a sample never measured has the score NaN, no other"


# Its choices


@dataclass(frozen=True)
class Population:
    """Samples and what was measured of them so far.

    Args:
        num_samples: N.
        measured: (ids, values) of every epoch before.
    """

    num_samples: int
    measured: tuple[tuple[NDArray[np.int64], NDArray[np.float64]], ...]

    def store(self, method: Method, communicator: Communicator, *, deal: int) -> ScoreStore:
        """The running scores, where ``deal`` says which rank measured what."""
        store = ScoreStore(self.num_samples, method.running(), labelled=method.needs_labels, communicator=communicator)
        rng = np.random.default_rng(deal)
        for epoch, (ids, values) in enumerate(self.measured):
            order = rng.permutation(len(ids))
            mine = order[rng.integers(communicator.world_size, size=len(ids)) == communicator.rank]
            measured = Measurements(
                ids=ids[mine], importance=values[mine], steps=ids[mine] % 7, labels=np.sqrt(ids[mine]).astype(int) % 3
            )
            store.update(measured, epoch=epoch)
            store.label(measured)
        return store

    def given(self, method: Method, store: ScoreStore) -> Mapping[str, NDArray[np.float32]]:
        """A rank's share of what is known of the samples before the run."""
        shard = ShardLayout(name="samples", size=0, samples=self.num_samples)
        return Given(method, DatasetLayout(streams=(StreamLayout(shards=(shard,)),)), store).owned


def _populations() -> Iterator[tuple[str, Population]]:
    rng = np.random.default_rng(5)

    def measured(num_samples: int, make: Callable[[int], NDArray[np.float64]], share: float = 1.0) -> Population:
        epochs = []
        for _ in range(2):
            ids = np.flatnonzero(rng.random(num_samples) < share)
            epochs.append((ids, make(len(ids))))
        return Population(num_samples, tuple(epochs))

    def spread(size: int) -> NDArray[np.float64]:
        return rng.lognormal(sigma=1.5, size=size)

    yield "spread", measured(211, spread)
    yield "partly measured", measured(211, spread, share=0.4)
    yield "never measured", Population(97, ())
    yield "all equal", measured(97, lambda size: np.full(size, 0.1))
    yield "all zero", measured(97, np.zeros)
    yield "many zeros", measured(97, lambda size: spread(size) * (rng.random(size) < 0.1))
    yield "one in a billion", measured(97, lambda size: np.where(np.arange(size) == 3, 1e9, 1.0))
    yield "tiny", measured(97, lambda size: 1e-30 * spread(size))
    yield "two samples", measured(2, spread)
    yield "one sample", measured(1, spread)


POPULATIONS: dict[str, Population] = dict(_populations())


@dataclass(frozen=True)
class Choice:
    """What all ranks together chose and how they weigh it."""

    keep: NDArray[np.bool_]
    inclusion: NDArray[np.float32] | None
    weights: float | NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and all(
            np.array_equal(one, two)  # pyright: ignore[reportArgumentType]
            for one, two in ((self.keep, other.keep), (self.inclusion, other.inclusion), (self.weights, other.weights))
        )


def choices_of(
    method: Method, population: Population, *, epochs: Sequence[int], world_size: int = 1, deal: int = 0
) -> dict[int, Choice]:
    """The choices of these epochs, made in this order by ranks that are threads."""

    def work(communicator: Communicator) -> dict[int, tuple[Any, ...]]:
        store = population.store(method, communicator, deal=deal)
        columns = {name: column.copy() for name, column in store.columns.items()}
        given = population.given(method, store)
        found = {}
        for epoch in epochs:
            owned = Owned(store, epoch=epoch, seed=_SEED, given=given)
            ratio = method.keep_ratio(epoch, _EPOCHS)
            k = None if ratio is None else num_kept(ratio, population.num_samples)
            chosen = method.choose(owned, epoch, k)
            _check_chosen(chosen.keep, chosen.inclusion, len(owned))
            kept = owned.count(chosen.keep)
            assert kept == k if k is not None else kept >= 1, f"{kept} of all samples are kept, asked were {k}"
            share = kept / population.num_samples
            weights = method.weigh(owned, chosen, share if ratio is None or share == 1 else ratio)
            _check_weights(method, weights, int(np.count_nonzero(chosen.keep)))
            found[epoch] = (chosen.keep, chosen.inclusion, weights)
            for name, column in columns.items():
                assert np.array_equal(store.columns[name], column, equal_nan=True), f"choose() changes column {name!r}"
        return found

    of_ranks = run_ranks(world_size, work)
    return {epoch: _joined([found[epoch] for found in of_ranks]) for epoch in epochs}


def _check_chosen(keep: NDArray[Any], inclusion: NDArray[Any] | None, size: int) -> None:
    assert isinstance(keep, np.ndarray), f"keep is a {type(keep).__name__}"
    assert keep.dtype == np.bool_, f"keep has dtype {keep.dtype}"
    assert keep.shape == (size,), f"keep has shape {keep.shape} for {size} samples"
    if inclusion is None:
        return
    assert inclusion.dtype == np.float32, f"inclusion has dtype {inclusion.dtype}"
    assert inclusion.shape == (size,), f"inclusion has shape {inclusion.shape} for {size} samples"
    of_kept = inclusion[keep]
    assert ((of_kept > 0) & (of_kept <= 1)).all(), f"a kept sample's inclusion lies outside (0, 1]: {of_kept}"


def _check_weights(method: Method, weights: Any, num_kept: int) -> None:
    if isinstance(weights, np.ndarray):
        assert method.weighs_samples, f"weigh() gives an array, so {type(method).__name__} needs weighs_samples = True"
        assert weights.dtype == np.float32, f"weights have dtype {weights.dtype}"
        assert weights.shape == (num_kept,), f"weights have shape {weights.shape} for {num_kept} kept samples"
    assert (np.isfinite(weights) & (np.asarray(weights) > 0)).all(), f"a weight is not finite and above 0: {weights}"


def _joined(parts: list[tuple[Any, Any, Any]]) -> Choice:
    keeps, inclusions, weights = zip(*parts, strict=True)
    kinds = {(inclusion is None, isinstance(weight, np.ndarray)) for _, inclusion, weight in parts}
    assert len(kinds) == 1, "some ranks give arrays where others give none"
    without_inclusion, has_array = kinds.pop()
    if not has_array:
        assert len(set(weights)) == 1, f"the ranks give different weights of all samples: {weights}"
    return Choice(
        np.concatenate(keeps),
        None if without_inclusion else np.concatenate(inclusions),
        np.concatenate(weights) if has_array else weights[0],
    )


def _every_epoch(method: Method) -> Iterator[tuple[str, Population, dict[int, Choice]]]:
    for name, population in POPULATIONS.items():
        yield name, population, choices_of(method, population, epochs=range(_EPOCHS))


def keeps_as_many_as_asked(method: Method) -> None:
    """Exactly k where k is asked for, else at least one; float32 probabilities and weights that can be had."""
    for _ in _every_epoch(method):  # checked at every choice
        pass


def chooses_alike_on_any_number_of_ranks(method: Method) -> None:
    """To the bit, whichever rank measured what, with fewer samples than ranks too."""
    for name, population, expected in _every_epoch(method):
        for world_size, deal in product((2, 3), (0, 1)):
            found = choices_of(method, population, epochs=range(_EPOCHS), world_size=world_size, deal=deal)
            assert found == expected, f"{name}: {world_size} ranks choose otherwise than one"


def remembers_nothing(method: Method) -> None:
    """A fresh object chooses the same, in whatever order it is asked."""
    for name, population, expected in _every_epoch(method):
        again = choices_of(rebuilt(method), population, epochs=range(_EPOCHS)[::-1], deal=1)
        assert again == expected, f"{name}: another object, asked for the last epoch first, chooses otherwise"


def rebuilt(method: Method) -> Method:
    """What the repr gives."""
    return eval(repr(method), dict(vars(sys.modules[type(method).__module__])))


VALUE_CHECKS: tuple[Callable[[Method], None], ...] = (
    rebuilds_itself,
    has_plain_settings,
    refuses_wrong_settings,
    keeps_a_ratio,
    measures_anew,
)
CHOICE_CHECKS: tuple[Callable[[Method], None], ...] = (
    keeps_as_many_as_asked,
    chooses_alike_on_any_number_of_ranks,
    remembers_nothing,
)
METHOD_CHECKS = VALUE_CHECKS + CHOICE_CHECKS
