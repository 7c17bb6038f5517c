"""Which of a test's cases `make test` runs; the others are long trials, of `make test-long`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick_of(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """All cases, each the value of one parameter or a tuple of several; those that are not quick are marked as long."""
    return [
        case if case in quick else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
        for case in cases
    ]
