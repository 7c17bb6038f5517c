"""A small training run that the tests of this folder share."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def make_trainer() -> Callable[..., Any]:
    """A function that builds a Trainer: see `small_run.make_trainer`."""
    from small_run import make_trainer  # imports Composer, which not all tests of this folder need

    return make_trainer
