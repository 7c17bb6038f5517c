"""Times of a training run as text: ``20ba`` batches, ``1ep`` epochs, ``0.1dur`` of the whole run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Duration", "beyond_the_end", "parse_duration"]

_NAMES = {"ba": "batches", "ep": "epochs", "dur": "a share of the run", "sp": "samples", "tok": "tokens"}


@dataclass(frozen=True)
class Duration:
    """A number of units.

    Attributes:
        value: > 0; a whole number but for ``dur``.
        unit: ``ba``, ``ep``, ``dur``, ``sp`` or ``tok``.
    """

    value: float
    unit: str

    def in_batches(self, *, length: int, steps: int) -> float:
        """As batches of a run on full data.

        Args:
            length: batches of an epoch.
            steps: batches of the run.
        """
        return self.value * {"ba": 1, "ep": length, "dur": steps}[self.unit]


def parse_duration(text: str, units: Sequence[str]) -> Duration:
    """Read a time.

    Args:
        text: for example ``500ba``.
        units: that there are.

    Raises:
        ValueError: saying what is expected; the caller names the setting.
    """
    found = re.fullmatch(r"(\d+|\d*\.\d+)(ba|ep|dur|sp|tok)", text)
    known = ", ".join(f"{unit} ({_NAMES[unit]})" for unit in units)
    example = f"write for example 1ep or 500ba; the units are {known}."
    if found is None or found[2] not in units:
        raise ValueError(f"{text!r} is no time here; {example}")
    value = float(found[1])
    if value <= 0 or (found[2] != "dur" and not found[1].isdecimal()) or (found[2] == "dur" and value > 1):
        raise ValueError(f"{text!r} must be a whole number from 1 on, or of dur a share in (0, 1], or null; {example}")
    return Duration(value, found[2])


def beyond_the_end(done: str, end: str) -> str:
    """What to say of a run that is to end before the checkpoint that it goes on from."""
    return (
        f"the run goes on from a checkpoint after {done}, but by max_duration it is to end after {end}; set a longer "
        "one, or autoresume=false with overwrite=true to begin again."
    )
