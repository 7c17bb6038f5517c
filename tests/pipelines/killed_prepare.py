"""Prepares ImageNet on two workers and dies once some shards are written: run by test_prepare_imagenet.py."""

import os
import signal
import sys
from multiprocessing import active_children

from ted_stream.pipelines.corpora.imagenet import prepare_imagenet


def main() -> None:
    source, out, shard_size, after = sys.argv[1:]
    written = 0

    def progress(stage: str, count: int, total: int | None) -> None:
        nonlocal written
        written += stage == "write" and count > 0
        if written == int(after):
            print(*(child.pid for child in active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    prepare_imagenet(out, source, workers=2, shard_size=int(shard_size), progress=progress)


if __name__ == "__main__":
    main()
