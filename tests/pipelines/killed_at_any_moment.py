"""Recipes that are killed from outside, whole process groups, and go on by `autoresume` alone: run by the test.

Attempts are forked from a process that has imported all, so that none is killed among its imports.
"""

import atexit
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from imagenet_sources import CLASSES, write_folders

from ted_stream.pipelines.corpora.imagenet import prepare_imagenet
from ted_stream.pipelines.training.settings import load_settings
from ted_stream.pipelines.training.train import train

CONFIG = Path(__file__).parents[2] / "configs" / "imagenet_resnet50.yaml"
SMALL = [
    *("data.image_size=16", "data.batch_size=16", "data.eval_batch_size=20", "data.color_jitter=0.4"),
    *("model.name=convnet", "model.channels=[8, 16]", "model.channels_last=false", "optimizer.lr=0.1"),
    *("max_duration=4ep", "scheduler.milestones=[2ep]", "scheduler.warmup=5ba", "pruning.annealing=0"),
    *("pruning.method=ted", "pruning.prune_ratio=0.5", "progress_bar=false"),
    *("save_interval=2ba", "autoresume=true"),
]


def start(*overrides: str) -> int:
    """Train in a process group of its own, whose id is returned."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setpgid(0, 0)
            train(load_settings(CONFIG, overrides))
            code = 0
        except BaseException:
            traceback.print_exc()
        atexit._run_exitfuncs()  # what a process does at its end
        os._exit(code)
    return pid


def killed(pid: int, moment: Callable[[], bool], pause: float) -> bool:
    """Kill a group so many seconds after a moment has come; ``False`` if it had ended."""
    end = float("inf")
    while time.monotonic() < end:
        if end == float("inf") and moment():
            end = time.monotonic() + pause
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert not status, f"exit code {os.waitstatus_to_exitcode(status)}"
            return False
        time.sleep(0.0005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def kill_and_go_on(folder: Path, last: str, rng: random.Random, *overrides: str) -> int:
    """How often the run was killed; `last` is the name of its last checkpoint."""

    def written() -> set[Path]:
        checkpoints = folder / "checkpoints"
        return {*checkpoints.glob("ep*"), *checkpoints.glob(".ep*.tmp")}

    # At a checkpoint's write, between two, …, behind the last.
    kills = 0
    for more, longest in ((1, 0.001), (2, 0.1), (1, 0.004), (2, 0.1), (1, 0.002), (None, 0.1)):
        before = written()

        def has_come(more: int | None = more, before: set[Path] = before) -> bool:
            return (folder / "checkpoints" / last).exists() if more is None else len(written() - before) >= more

        kills += killed(start(*overrides), has_come, longest * rng.random())
    assert not killed(start(*overrides), lambda: False, 0)
    return kills


def main() -> None:
    out = Path(sys.argv[1])
    for host in ("composer_host", "loop_host"):
        import_module(f"ted_stream.pipelines.training.{host}")
    torch.set_num_threads(1)
    source = write_folders(out / "source", per_class=160 // len(CLASSES), test_per_class=40 // len(CLASSES))
    prepare_imagenet(out / "images", source, shard_size=20_000, workers=1)
    outcomes = {}
    for case in sys.argv[2:]:
        trainer, workers = case.split("-")
        folders = [out / case / name for name in ("lived", "killed")]
        common = [*SMALL, f"data.path={out / 'images'}", f"trainer={trainer}", f"data.num_workers={workers}"]
        try:
            assert not killed(start(*common, f"folder={folders[0]}"), lambda: False, 0)
            checkpoints = (folders[0] / "checkpoints").glob("ep*")
            last = max(checkpoints, key=lambda path: int(path.stem.split("-")[1][2:])).name
            outcomes[case] = kill_and_go_on(folders[1], last, random.Random(case), *common, f"folder={folders[1]}")
        except Exception:
            outcomes[case] = traceback.format_exc()
        print(case, outcomes[case], flush=True)
    (out / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
