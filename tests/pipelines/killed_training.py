"""Trains as a config and overrides say, with the loop, and dies by SIGKILL before a batch: run by test_trainers.py."""

import os
import signal
import sys
from typing import Any

import torch

from ted_stream.pipelines.training.loop_host import Host
from ted_stream.pipelines.training.settings import load_settings
from ted_stream.pipelines.training.train import train


def main(die_at: str, config: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    step = Host._train

    def step_or_die(self: Host, batch: Any) -> None:
        if self.batches == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batch)

    Host._train = step_or_die
    train(load_settings(config, overrides))


if __name__ == "__main__":
    main(*sys.argv[1:])
