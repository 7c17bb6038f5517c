"""Settings are checked where the user writes them, and those without effect are warned of there."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from ted_stream.methods import METHODS, TED, Composed, DynamicDUAL, ImportanceSampling, InfoBatch, Method, RandomPruning

FRACTION = ["0.7", True, None, [0.5], 1.0, 1.5, -0.1, float("nan"), float("inf"), 70]
POSITIVE = ["1", True, [1.0], 0.0, -1.0, float("nan"), float("inf")]
FLAG = ["no", "", 0, 1, None, 1.0, np.True_]
WORD = ["nothing", "", None, 1, True, ["highest"]]
PATH = ["", "scores.csv", 1, True, None, ["a.parquet"]]
WRONG: dict[str, list[Any]] = {
    "prune_ratio": FRACTION,
    "schedule": WORD,
    "beta": POSITIVE,
    "annealing": FRACTION,
    "loss_correction": FLAG,
    "site": ["logits", "", 1, ["input"]],
    "alpha": FRACTION,
    "relative": FLAG,
    "choice": WORD,
    "temperature": ["1", True, [1.0], 0.0, -1.0, float("nan")],  # infinity draws uniformly
    "importance": WORD,
    "apply_weights": FLAG,
    "c": ["1", True, None, [1.0], -1.0, float("nan"), float("inf")],
    "class_shares": ["nothing", "", 1, True, ["sqrt"]],
    "clip_chance": FLAG,
    "clip_quantile": ["0.7", True, [0.5], 0.0, 1.0, 1.5, float("nan")],
    "coverage": WORD,
    "epsilon": ["0.7", True, None, [0.5], 1.5, -0.1, float("nan")],
    "groups": ["3", True, None, [3], 0, -1],
    "norm": ["1", True, [1], 0, 3, 1.5],
    "pool": ["0.7", True, [0.5], 0.0, 1.5, float("nan")],
    "reference": PATH,
    "score": WORD,
    "skip_list": PATH,
    "weights": WORD,
    "window": ["3", True, None, [3], 0, -1],
    "window_share": ["0.7", True, None, [0.5], 0.0, 1.5, float("nan")],
}
AT_LEAST_ZERO = ["0.1", True, None, -0.1, float("nan"), float("inf")]
FLOOR: dict[type[Method], list[Any]] = {
    TED: AT_LEAST_ZERO,
    Composed: AT_LEAST_ZERO,
    DynamicDUAL: AT_LEAST_ZERO,
    ImportanceSampling: [*POSITIVE, None],
}
RIGHT: dict[str, Any] = {"prune_ratio": 0.5, "reference": "a.parquet", "skip_list": "a.parquet"}


def right(method: type[Method]) -> dict[str, Any]:
    """Settings that must be given."""
    return {name: value for name, value in RIGHT.items() if name in names_of(method)}


def names_of(method: type[Method]) -> list[str]:
    return [field.name for field in fields(method)]


def cases() -> list[tuple[type[Method], str, Any]]:
    found = []
    for method in METHODS.values():
        for name in names_of(method):
            wrong = FLOOR[method] if name == "floor" else WRONG[name]
            found += [(method, name, value) for value in wrong]
    return found


@pytest.mark.parametrize(("method", "name", "value"), cases())
def test_a_wrong_setting_is_refused_by_name_with_its_value(method: type[Method], name: str, value: Any) -> None:
    mask = {"importance": "mask_gradient"} if method is Composed and name in ("site", "norm") else {}
    with pytest.raises((TypeError, ValueError)) as caught:
        method(**{**right(method), **mask, name: value})  # pyright: ignore[reportCallIssue]
    text = str(caught.value)
    assert text.startswith(f"{name} is {value!r}") or text.startswith(f"{name} is {float(value)!r}"), text
    assert "must" in text


@pytest.mark.parametrize("method", METHODS.values())
@pytest.mark.parametrize("number", [np.float32, np.float64, lambda value: np.array(value)[()]])
def test_numbers_of_numpy_become_pythons_own(method: type[Method], number: Callable[[float], Any]) -> None:
    numbers = {"prune_ratio": 0.5, "annealing": 0.25, "alpha": 0.5, "floor": 0.5, "beta": 0.25, "temperature": 2.0}
    values: dict[str, Any] = {name: value for name, value in numbers.items() if name in names_of(method)}
    others: dict[str, Any] = right(method) | ({"choice": "sampled"} if method is TED else {})
    others = {name: value for name, value in others.items() if name not in values}
    made = method(**{name: number(value) for name, value in values.items()}, **others)
    assert made == method(**values, **others)
    assert {type(getattr(made, name)) for name in values} <= {float}
    assert "np." not in repr(made)


def test_whole_numbers_become_floats() -> None:
    assert repr(TED(0)) == repr(TED(0.0))


NO_EFFECT: dict[str, Callable[[], Method]] = {
    "site=.* no mask": lambda: TED(0.5, importance="loss", site="features"),
    "temperature=.* draws nothing": lambda: TED(0.5, temperature=2.0),
    "floor=.* draws nothing": lambda: TED(0.5, floor=0.5),
    "beta=.* has no such shape": lambda: TED(0.5, schedule="linear", beta=0.3),
    "beta=.* no such shape": lambda: RandomPruning(0.5, schedule="constant", beta=0.3),
    "beta=.*'cosine' has": lambda: ImportanceSampling(0.5, schedule="cosine", beta=0.3),
}


@pytest.mark.parametrize("words", NO_EFFECT)
def test_a_setting_without_effect_is_warned_of_at_the_users_line(words: str) -> None:
    make = NO_EFFECT[words]
    with pytest.warns(UserWarning, match=words) as caught:
        make()
    (warning,) = caught
    assert warning.filename == __file__
    assert warning.lineno == inspect.getsourcelines(make)[1]


def test_settings_with_effect_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TED(0.5, beta=0.3, site="input", choice="sampled", temperature=2.0, floor=0.1)
        TED(0.5, importance="loss", schedule="linear")
        RandomPruning(0.5, schedule="roller-coaster", beta=0.2)
        ImportanceSampling(0.5, beta=0.2)
        InfoBatch(0.5)
