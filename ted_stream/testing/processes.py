"""Processes that tests start and do not leave behind."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

__all__ = ["run_to_the_end"]


def run_to_the_end(command: Sequence[str], environment: Mapping[str, str], timeout: float) -> None:
    """Run a command in a process group of its own, of which nothing is left when this returns.

    Args:
        command: and its arguments.
        environment: all of its variables.
        timeout: in seconds.

    Raises:
        AssertionError: if it does not end with status 0, with the end of what it printed.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | str = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"none in {timeout} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        assert code == 0, f"{' '.join(command)}\nexit status {code}\n{output.read()[-12000:]}"
