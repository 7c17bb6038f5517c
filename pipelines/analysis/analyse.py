"""The analyses of one or several runs: what is computed of which checkpoint, and the files that hold it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ted_stream.files import is_remote, join, write_bytes
from ted_stream.skip_list import DatasetLayout

from ..training.settings import ConfigError
from .computing import analysed
from .evaluation import Evaluation
from .plan import PARTS, Asked, Plan
from .plots import figures
from .results import QUANTILES, RunAnalysis
from .runs import Run, read_run

__all__ = ["FIGURES", "NUMBERS_FILE", "Analysis", "analyse"]

FORMAT = "ted-stream analysis 1"
NUMBERS_FILE = "analysis.json"
FIGURES = ("losses.png", "least_kept.png", "gradients.png", "interpolation.png")


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What was computed and where it lies.

    Attributes:
        runs: in the order in which they were given.
        files: paths or URIs, the numbers first.
    """

    runs: tuple[RunAnalysis, ...]
    files: tuple[str, ...]


def analyse(
    folders: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    parts: Collection[str] = PARTS,
    every: int = 1,
    start: int = 0,
    points: int = 21,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """The analyses of the TED paper's Figures 1, 2, 4 and 8, of runs on one dataset.

    Networks are in evaluation mode and float32, samples without augmentation, losses those that the runs trained by
    (label smoothing included).

    Args:
        folders: of runs that ``ted-stream train`` made with ``save_interval=1ep``; with a longer interval, what there
            are checkpoints of.
        out: folder or URI of the results; by default ``analysis`` in the first run's folder.
        overrides: ``data.key=value``, see `read_run`.
        parts: what to compute, of `PARTS`.
        every: use every so many-th epoch's checkpoint, and the last.
        start: epochs after which the interpolation begins; 0 is the network as it was initialised.
        points: of the interpolation, its ends included, at least 2.
        overwrite: replace the files of an earlier analysis.
        progress: told how many samples have passed through networks, and of how many.

    Returns:
        What was computed, which is also written: ``analysis.json`` and a PNG for each figure.

    Raises:
        ConfigError: what is asked for cannot be had of these runs.
        FileNotFoundError: a folder is none of a run, or what it refers to is gone.
        FileExistsError: ``out`` holds an analysis.
        SkipListError: a skip-list was changed, or belongs to another dataset.
    """
    asked = Asked(parts=tuple(parts), every=every, start=start, points=points)
    if (world := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ConfigError(f"this is one of {world} processes, but one analyses alone; run it without a launcher.")
    if not folders:
        raise ConfigError("there is no run to analyse; name the folder of one.")
    out = join(folders[0], "analysis") if out is None else str(out)
    _refuse_earlier(out, overwrite=overwrite)
    runs = [read_run(folder, overrides) for folder in folders]
    names = _names(runs)
    plans = [Plan(run, asked) for run in runs]
    done, total = 0, sum(plan.passes for plan in plans) * _samples_of(runs)

    def told(samples: int) -> None:
        nonlocal done
        done += samples
        if progress is not None:
            progress(done, total)

    found = tuple(analysed(plan, name, told) for plan, name in zip(plans, names, strict=True))
    return Analysis(runs=found, files=_write(out, found))


def _refuse_earlier(out: str, *, overwrite: bool) -> None:
    if is_remote(out) or overwrite:
        return
    found = [name for name in (NUMBERS_FILE, *FIGURES) if (Path(out) / name).exists()]
    if found:
        raise FileExistsError(
            f"{out} holds an earlier analysis ({', '.join(found)}); pass --overwrite to replace it, or --out another "
            "place."
        )


def _names(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: the last part of their folders, or the whole."""
    folders = [run.folder.resolve() for run in runs]
    for at, folder in enumerate(folders):
        if folder in folders[:at]:
            raise ConfigError(f"{folder} is given twice; name every run once.")
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _samples_of(runs: Sequence[Run]) -> int:
    """N of the dataset of all; every run's data, lists and network are opened once, before hours go into the first.

    Raises:
        ConfigError: the runs are of different datasets, or what they refer to does not fit.
    """
    first: DatasetLayout | None = None
    for run in runs:
        evaluation = Evaluation(run)
        layout = evaluation.layout
        evaluation.weights(max(run.checkpoints))
        for epoch in run.pruned_epochs():
            run.skip_list(epoch, layout)
        del evaluation  # before the next one opens the same data
        first = first or layout
        if layout.fingerprint != first.fingerprint:
            raise ConfigError(
                f"{run.folder} was trained on dataset {layout.fingerprint[:16]}, and {runs[0].folder} on "
                f"{first.fingerprint[:16]}; losses on other samples cannot be compared, so analyse them apart."
            )
    assert first is not None
    return first.num_samples


def _write(out: str, runs: tuple[RunAnalysis, ...]) -> tuple[str, ...]:
    """Every file whole or not at all, the numbers last; figures of an earlier analysis that are not drawn now go."""
    drawn = figures(runs)
    numbers = {"format": FORMAT, "quantiles": QUANTILES, "runs": [asdict(run) for run in runs]}
    content = json.dumps(numbers, indent=2, allow_nan=False).encode() + b"\n"
    _remove(out, NUMBERS_FILE)  # which are there when all else is
    for name in FIGURES:
        if name in drawn:
            write_bytes(join(out, name), drawn[name])
        else:
            _remove(out, name)
    write_bytes(join(out, NUMBERS_FILE), content)
    return tuple(join(out, name) for name in (NUMBERS_FILE, *drawn))


def _remove(out: str, name: str) -> None:
    if not is_remote(out):
        (Path(out) / name).unlink(missing_ok=True)
