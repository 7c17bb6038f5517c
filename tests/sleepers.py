"""A method that never chooses: imported by test_processes.py, and by the processes that it starts."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ted_stream.methods import Chosen, RandomPruning
from ted_stream.pruning import Owned


@dataclass(frozen=True, kw_only=True)
class Sleeper(RandomPruning):
    """Sleeps for ever, as does a process that it forks, and notes both ids."""

    pids: str = ""

    def choose(self, owned: Owned, epoch: int, k: int | None) -> Chosen:
        child = os.fork()
        with Path(self.pids).open("a") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(600 + child)
        return super().choose(owned, epoch, k)
