"""All that every method keeps, in every host."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from ted_stream.methods import Method
from ted_stream.testing.contract_checks import HOST_CHECKS, run_checks
from ted_stream.testing.contract_runs import contract_runs, run_name
from ted_stream.testing.methods import METHOD_CHECKS
from ted_stream.testing.runs import HOSTS, installed_hosts, start_runs

__all__ = ["check_method", "checked_hosts"]


def check_method(method: Method, *, hosts: Sequence[str] | None = None, folder: Path | None = None) -> None:
    """Check all that is asked of a method: its value, its choices, and whole runs in every host.

    The runs take about half a minute in all. The method's class must be one that another process can import.

    Args:
        method: with settings that prune from the second epoch on at the latest.
        hosts: in which whole runs are made: ``composer``, ``loop``, ``huggingface``, and what the first comes to all
            others must come to. By default all that are installed; a warning names those that are not.
        folder: an empty one for the files of the runs; a temporary one where it is ``None``.

    Raises:
        ValueError: for a host that is not known or not installed.
        AssertionError: saying what it does not keep.
    """
    hosts = checked_hosts(hosts)
    for check in METHOD_CHECKS:
        check(method)
    with tempfile.TemporaryDirectory() as temporary:
        out = folder or Path(temporary)
        start_runs([run for host in hosts for run in contract_runs("run", method, host)], out)
        for host in hosts:
            for check in run_checks(host):
                check(method, out, run_name("run", host))
        for check in HOST_CHECKS:
            check(method, out, "run", hosts)


def checked_hosts(hosts: Sequence[str] | None) -> tuple[str, ...]:
    """The hosts that are asked for; all that are installed, with a warning of those that are not, if none are named.

    Raises:
        ValueError: for a host that is not known or not installed.
    """
    installed = installed_hosts()
    missing = {host: ", ".join(packages) for host, packages in HOSTS.items() if host not in installed}
    if hosts is None:
        for host, packages in missing.items():
            warnings.warn(
                f"check_method() makes no runs in {host}, which is not installed ({packages}): what the method does "
                "there goes unchecked.",
                stacklevel=3,
            )
        return installed
    if not hosts:
        raise ValueError("hosts is empty, but must name at least one. Leave it out for all that are installed.")
    for host in hosts:
        if host not in installed:
            why = f"is not installed ({missing[host]})" if host in missing else f"is none of {', '.join(HOSTS)}"
            raise ValueError(
                f"hosts has {host!r}, which {why}. Drop it, or leave out hosts for all that are installed."
            )
    return tuple(hosts)
