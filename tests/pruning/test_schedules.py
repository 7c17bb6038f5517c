import math
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest

from ted_stream.pruning import (
    SCHEDULES,
    ConstantSchedule,
    CosineSchedule,
    KeepRatioSchedule,
    LinearSchedule,
    RollerCoasterSchedule,
    make_schedule,
)

NAMES = ["roller-coaster", "constant", "linear", "cosine"]


def _make(name: str, *, prune_ratio: float, annealing: float = 0.0, beta: float = 0.25) -> KeepRatioSchedule:
    return make_schedule(name, prune_ratio=prune_ratio, annealing=annealing, beta=beta)


def _ratios(schedule: KeepRatioSchedule, num_epochs: int) -> np.ndarray:
    return np.array([schedule.keep_ratio(epoch, num_epochs) for epoch in range(num_epochs)])


def test_every_schedule_is_enrolled():
    assert sorted(SCHEDULES) == sorted(NAMES)
    assert {SCHEDULES[name] for name in NAMES} == set(KeepRatioSchedule.__subclasses__())


@pytest.mark.parametrize("beta", [0.2, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("prune_ratio", [0.0, 0.3, 0.7, 0.99])
def test_roller_coaster_is_a_power_of_the_final_ratio(prune_ratio, beta):
    # exp{u^β log(1 - s)} = (1 - s)^(u^β)
    u = np.arange(40) / 40
    ratios = _ratios(_make("roller-coaster", prune_ratio=prune_ratio, beta=beta), 40)
    np.testing.assert_allclose(ratios, (1 - prune_ratio) ** (u**beta), rtol=1e-13)


def test_roller_coaster_of_the_paper():
    schedule = RollerCoasterSchedule(prune_ratio=0.7, annealing=0.125, beta=0.25)
    assert schedule.keep_ratio(0, 200) == 1.0
    # 18 epochs, T_p = 16: u = 1/16 and u^β = 1/2.
    assert schedule.keep_ratio(1, 18) == pytest.approx(0.3**0.5, rel=1e-12)
    assert schedule.keep_ratio(174, 200) == pytest.approx(0.3 ** ((174 / 175) ** 0.25), rel=1e-12)
    assert schedule.keep_ratio(175, 200) == 1.0


@pytest.mark.parametrize("prune_ratio", [0.0, 0.3, 0.7, 0.99])
def test_linear_and_cosine_and_constant(prune_ratio):
    u = np.arange(32) / 32
    linear = _ratios(_make("linear", prune_ratio=prune_ratio), 32)
    np.testing.assert_allclose(linear, (1 - u) + u * (1 - prune_ratio), rtol=1e-13)
    cosine = _ratios(_make("cosine", prune_ratio=prune_ratio), 32)
    np.testing.assert_allclose(cosine, 1 - prune_ratio * np.sin(np.pi * u / 2) ** 2, rtol=1e-13)
    constant = _ratios(_make("constant", prune_ratio=prune_ratio), 32)
    assert np.array_equal(constant, np.full(32, 1 - prune_ratio))


@pytest.mark.parametrize("annealing", [0.0, 0.125, 0.5])
@pytest.mark.parametrize("name", ["roller-coaster", "linear", "cosine"])
def test_the_first_epoch_sees_all_data(name, annealing):
    schedule = _make(name, prune_ratio=0.7, annealing=annealing)
    for num_epochs in (1, 2, 7, 200):
        assert schedule.keep_ratio(0, num_epochs) == 1.0
        assert schedule.num_kept(0, num_epochs, 12_345) == 12_345


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("annealing", "num_epochs", "annealed"),
    [(0.0, 10, 0), (0.125, 200, 25), (0.125, 90, 11), (0.125, 24, 3), (0.2, 3, 1), (0.1, 3, 0), (0.9, 2, 2)],
)
def test_the_last_epochs_anneal(name, annealing, num_epochs, annealed):
    schedule = _make(name, prune_ratio=0.5, annealing=annealing)
    assert annealed == round(annealing * num_epochs)
    pruning = num_epochs - annealed
    assert schedule.pruning_epochs(num_epochs) == pruning
    flags = [schedule.is_pruning(epoch, num_epochs) for epoch in range(num_epochs)]
    assert flags == [True] * pruning + [False] * annealed
    ratios = _ratios(schedule, num_epochs)
    assert (ratios[pruning:] == 1.0).all()
    if pruning > 1:
        assert ratios[pruning - 1] < 1.0
    assert schedule.keep_ratio(num_epochs, num_epochs) == 1.0  # training past the plan
    assert not schedule.is_pruning(num_epochs, num_epochs)


@pytest.mark.parametrize("annealing", [0.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_kept_fraction_only_falls_while_pruning(name, annealing):
    schedule = _make(name, prune_ratio=0.8, annealing=annealing)
    pruning = schedule.pruning_epochs(60)
    ratios = _ratios(schedule, 60)[:pruning]
    if name == "constant":
        assert (np.diff(ratios) == 0).all()
    else:
        assert (np.diff(ratios) < 0).all()
    assert ratios.min() >= 1 - 0.8
    counts = [schedule.num_kept(epoch, 60, 997) for epoch in range(pruning)]
    assert counts == sorted(counts, reverse=True)


def test_num_kept_is_the_exact_ceiling():
    """Floats like (1 - 0.7)·10 = 3.0000000000000004 must not keep a sample too many, or one too few."""
    texts = [f"0.{i:02d}" for i in range(100)] + ["0.125", "0.333", "0.3333", "0.001", "0.999", "0.12345", "0.999999"]
    sizes = [*range(1, 121), 997, 1000, 12_500, 50_000, 52_002, 1_281_167, 10_000_000]
    for text in texts:
        schedule = ConstantSchedule(prune_ratio=float(text))
        exact = 1 - Fraction(text)
        kept = [schedule.num_kept(0, 1, size) for size in sizes]
        assert kept == [math.ceil(exact * size) for size in sizes], text


def test_num_kept_float_traps_by_hand():
    assert (1 - 0.7) * 10 > 3  # the trap is real
    assert ConstantSchedule(prune_ratio=0.7).num_kept(0, 1, 10) == 3
    assert (1 - 0.9) * 30 < 3
    assert ConstantSchedule(prune_ratio=0.9).num_kept(0, 1, 30) == 3
    assert ConstantSchedule(prune_ratio=0.9).num_kept(0, 1, 31) == 4
    assert ConstantSchedule(prune_ratio=0.99).num_kept(0, 1, 1) == 1  # never an empty epoch
    assert LinearSchedule(prune_ratio=0.9).num_kept(9, 10, 100) == 19


def test_planned_save_ratio_is_equation_24():
    # Three of four epochs at ⌈0.5·101⌉ = 51, one annealing epoch at 101.
    schedule = ConstantSchedule(prune_ratio=0.5, annealing=0.25)
    assert schedule.planned_save_ratio(101, 4) == pytest.approx(1 - (3 * 51 + 101) / (101 * 4), abs=1e-15)
    for name in NAMES:
        schedule = _make(name, prune_ratio=0.6, annealing=0.125)
        forwarded = sum(math.ceil(round(r * 5003, 6)) for r in _ratios(schedule, 40))
        assert schedule.planned_save_ratio(5003, 40) == pytest.approx(1 - forwarded / (5003 * 40), abs=1e-15)
        assert _make(name, prune_ratio=0.0).planned_save_ratio(5003, 40) == 0.0
    # The integral of eq. 21 at s = 0.7, β = 0.25 over 175 of 200 epochs: METHODS' small trials quote 0.51 to 0.53.
    paper = RollerCoasterSchedule(prune_ratio=0.7, annealing=0.125)
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    integral = (1 - np.exp(u**0.25 * np.log(0.3))).mean() * 175 / 200
    assert paper.planned_save_ratio(50_000, 200) == pytest.approx(integral, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"prune_ratio": 1.0}, ["prune_ratio is 1.0", "[0, 1)"]),
        ({"prune_ratio": -0.1}, ["prune_ratio is -0.1", "[0, 1)"]),
        ({"prune_ratio": 70}, ["prune_ratio is 70", "[0, 1)", "not a percentage"]),
        ({"prune_ratio": math.nan}, ["prune_ratio is nan", "[0, 1)"]),
        ({"annealing": 1.0}, ["annealing is 1.0", "[0, 1)"]),
        ({"annealing": -0.5}, ["annealing is -0.5", "[0, 1)"]),
    ],
)
def test_values_out_of_range_are_refused(name, values, parts):
    with pytest.raises(ValueError, match="must lie in") as caught:
        make_schedule(name, **{"prune_ratio": 0.5, "annealing": 0.0, "beta": 0.25, **values})
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(beta):
    with pytest.raises(ValueError, match=rf"beta is {beta}.*positive"):
        RollerCoasterSchedule(prune_ratio=0.5, beta=beta)


def test_unknown_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="schedule is 'step'") as caught:
        _make("step", prune_ratio=0.5)
    assert all(repr(name) in str(caught.value) for name in NAMES)


def test_make_schedule_hands_every_value_on():
    assert make_schedule("roller-coaster", prune_ratio=0.6, annealing=0.1, beta=0.3) == RollerCoasterSchedule(
        prune_ratio=0.6, annealing=0.1, beta=0.3
    )
    for name, kind in [("constant", ConstantSchedule), ("linear", LinearSchedule), ("cosine", CosineSchedule)]:
        made = make_schedule(name, prune_ratio=0.6, annealing=0.1, beta=0.3)
        assert made == kind(prune_ratio=0.6, annealing=0.1)


def test_schedules_are_frozen_and_rebuilt_by_their_repr():
    schedule = RollerCoasterSchedule(prune_ratio=0.6, annealing=0.1, beta=0.3)
    assert eval(repr(schedule)) == schedule
    with pytest.raises(FrozenInstanceError):
        schedule.beta = 0.5  # pyright: ignore[reportAttributeAccessIssue]
