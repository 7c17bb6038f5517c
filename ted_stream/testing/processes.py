"""Processes that tests start and do not leave behind."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

__all__ = ["run_to_the_end"]

_MARK = "TED_STREAM_TRIAL"


def run_to_the_end(command: Sequence[str], environment: Mapping[str, str], timeout: float) -> None:
    """Run a command, of whose processes nothing is left when this returns.

    On Linux, what it starts in sessions of their own, as torchrun's launcher does, is found by its environment.

    Args:
        command: and its arguments.
        environment: all of its variables.
        timeout: in seconds.

    Raises:
        AssertionError: if it does not end with status 0, with the end of what it printed.
    """
    mark = uuid4().hex
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            env={**environment, _MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"none in {timeout} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            while left := _marked(mark):  # again: one may have started another meanwhile
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        output.seek(0)
        assert code == 0, f"{' '.join(command)}\nexit status {code}\n{output.read()[-12000:]}"


def _marked(mark: str) -> list[int]:
    """The living processes that have this in their environment."""
    entry, found = f"{_MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if entry in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
