"""A plain loop makes the lists and weights that Composer makes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from composer_runs import composer_run
from loop_runs import METHODS, NUM_SAMPLES, make_loader, train

from ted_stream.methods import Method


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_makes_the_lists_and_weights_that_composer_makes(
    method: Method, kind: str, make_mds: Callable[..., str], tmp_path: Path
) -> None:
    data = make_mds(NUM_SAMPLES) if kind == "streaming" else None
    expected = composer_run(method, str(tmp_path / "composer"), make_loader(data))
    found = train(method, str(tmp_path / "loop"), loader=make_loader(data), dropout=0.0)
    assert min(found["kept"]) < NUM_SAMPLES
    assert found.pop("rate") == pytest.approx(0, abs=1e-12)
    assert found == expected
