"""Checks of settings, where the user wrote them: each error names the value, the bound and the fix."""

import math
import numbers
import operator
from collections.abc import Iterable

__all__ = ["check_choice", "check_flag", "check_number", "check_whole"]


def check_number(name: str, value: object, bounds: str, *, fix: str) -> float:
    """A setting as a Python float.

    Args:
        name: of the setting.
        value: a number; NumPy's are numbers too, a bool is not.
        bounds: an interval such as ``[0, 1)`` or ``(0, inf)``.
        fix: what the setting means, and what to pass.

    Raises:
        TypeError: if it is no number.
        ValueError: if it lies outside the bounds, or is NaN.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}, but it must be a number in {bounds}: {fix}")
    number = float(value)
    low, high = (float(bound) for bound in bounds[1:-1].split(","))
    above = number >= low if bounds[0] == "[" else number > low
    below = number <= high if bounds[-1] == "]" else number < high
    if math.isnan(number) or not (above and below):
        shown = value if isinstance(value, int) else number
        raise ValueError(f"{name} is {shown!r}, but it must lie in {bounds}: {fix}")
    return number


def check_whole(name: str, value: object, *, fix: str) -> int:
    """A setting as a Python int, of either sign.

    Raises:
        TypeError: if it is no whole number.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(
            f"{name} is {value!r}, a {type(value).__name__}, but it must be a whole number: {fix}"
        ) from None


def check_flag(name: str, value: object, *, fix: str) -> bool:
    """A setting that is True or False; a word such as "no" would be true.

    Raises:
        TypeError: if it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}, but it must be True or False: {fix}")
    return value


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """A setting that is one of some words.

    Raises:
        ValueError: if it is none of them.
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}, but it must be one of {', '.join(map(repr, choices))}.")
    return value
