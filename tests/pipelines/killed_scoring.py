"""Scores as a config and overrides say, and dies by SIGKILL in a pass: run by test_score_resume.py."""

import os
import signal
import sys
from typing import Any

import torch

from ted_stream.pipelines.training.score import score
from ted_stream.pipelines.training.score_settings import load_scoring
from ted_stream.pipelines.training.scored_columns import ScoredColumns


def main(die_at: str, config: str, *overrides: str) -> None:
    """Score, and die when so many batches of passes have been written by this process, if it is no negative number."""
    torch.set_num_threads(1)
    write, written = ScoredColumns.write, [0]

    def write_or_die(self: ScoredColumns, start: int, parts: Any) -> None:
        if written[0] == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)
        written[0] += 1
        write(self, start, parts)

    ScoredColumns.write = write_or_die
    score(load_scoring(config, overrides))


if __name__ == "__main__":
    main(*sys.argv[1:])
