"""Any number of jobs may start on a node at the same moment, and nothing that a killed one left stops the next."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("jobs_on_a_node.py")


@pytest.fixture(scope="module")
def outcomes(launch: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("jobs")
    launch(SCRIPT, folder, timeout=600)
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize(
    "trial",
    [
        "start_together",
        "ranks_start_together",
        "killed_with_all_that_cleans_up",
        "one_local_folder",
        "the_living_keep_what_they_have",
    ],
)
def test_jobs(outcomes: dict[str, str], trial: str) -> None:
    assert outcomes[trial] == "right", outcomes[trial]
