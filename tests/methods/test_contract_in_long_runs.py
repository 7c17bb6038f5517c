"""More whole runs of some methods in every host: kills at other moments, streaming data, sharded models."""

from collections.abc import Callable
from pathlib import Path

import pytest
from method_examples import RUN

from ted_stream.methods import Method
from ted_stream.testing.contract_checks import long_run_checks
from ted_stream.testing.contract_runs import long_contract_runs, run_name
from ted_stream.testing.runs import installed_hosts, start_runs

HOSTS = installed_hosts()
LONG = [(host, check) for host in HOSTS for check in long_run_checks(host)]
# What these need of the engine takes every way through it: a count of its own, ranks, shares of classes with weights.
EVERY_WAY = ("infobatch", "ted", "composed")


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory, make_mds: Callable[..., str]) -> Path:
    out, data = tmp_path_factory.mktemp("long_runs"), make_mds(61)
    start_runs(
        [run for name in EVERY_WAY for host in HOSTS for run in long_contract_runs(name, RUN[name], data, host)],
        out,
        timeout=1800,
    )
    return out


@pytest.mark.long
@pytest.mark.parametrize(("host", "check"), LONG, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("name", EVERY_WAY)
def test_keeps_in_long_runs(name: str, host: str, check: Callable[[Method, Path, str], None], long_runs: Path) -> None:
    check(RUN[name], long_runs, run_name(name, host))
