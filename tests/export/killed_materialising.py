"""Copies what a run kept on two workers, and kills its whole process group half-way: run by test_materialising.py."""

import os
import signal
import sys

from ted_stream.export import materialise


def main() -> None:
    run, out, dataset, to, after = sys.argv[1:]

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "copy" and done >= float(after) * total:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    materialise(run, out, to=to, dataset=dataset, workers=2, progress=progress)


if __name__ == "__main__":
    main()
