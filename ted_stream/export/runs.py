"""Manifests from run folders: of a run that has finished, was killed, or is still at work."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ted_stream.export.manifest import write_manifest
from ted_stream.export.run_files import (
    MANIFEST,
    RUN_FILE,
    check_target,
    pruned_epochs,
    read_run,
    read_running_scores,
    run_to_bytes,
)
from ted_stream.files import exists, join, write_bytes
from ted_stream.skip_list import read_skip_list

__all__ = ["Exported", "export_manifest", "finish_run"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What :func:`export_manifest` wrote.

    Attributes:
        path: of the manifest.
        epoch: 0-based, whose kept samples it lists.
        kept: samples in it.
        samples: of the dataset.
        scored_after: the epoch after which its scores were; ``None`` where there are none.
        finished: whether the run has ended.
    """

    path: str
    epoch: int
    kept: int
    samples: int
    scored_after: int | None
    finished: bool


def export_manifest(
    folder: str | os.PathLike[str],
    *,
    epoch: int | None = None,
    path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the manifest of what a run kept, from what lies in its folder.

    A run that ends writes the same for the last epoch that it pruned. The scores are those after the last epoch that
    has ended, whichever epoch is exported.

    Args:
        folder: of a run, a local path or a URI.
        epoch: 0-based; by default the last that was pruned.
        path: of the manifest; by default ``manifest.parquet`` in the folder.
        overwrite: replace a file that is there; the folder's own is replaced anyway by that of the last pruned epoch.

    Raises:
        FileExistsError: if there is a file already.
        IsADirectoryError: if the path is that of a folder.
        FileNotFoundError: if the folder is none of a run, or a file of it is missing.
        ValueError: if it has not pruned yet, has no such epoch, a file of it is damaged, or is to be written over.
    """
    run = read_run(folder)
    if path is not None:
        check_target(folder, path)
    if epoch is None:
        records = pruned_epochs(run)
        if not records:
            raise ValueError(
                f"{os.fspath(folder)} has pruned in none of its {len(run['epochs'])} epochs so far, so that there is "
                "nothing to list but the whole dataset; name an epoch if you want that."
            )
        record = records[-1]
    else:
        records = [record for record in run["epochs"] if record["epoch"] == epoch]
        if not records:
            known = [record["epoch"] for record in run["epochs"]]
            told = f"{known[0]} to {known[-1]}" if known else "none yet"
            raise ValueError(f"epoch is {epoch}, but {os.fspath(folder)} has the epochs {told}.")
        record = records[0]
    target = join(folder, MANIFEST) if path is None else os.fspath(path)
    if not overwrite and not (path is None and epoch is None) and exists(target):
        raise FileExistsError(f"{target} exists; name another file, or pass overwrite=True (--overwrite).")
    skip_list = read_skip_list(join(folder, record["skip_list"]), digest=record["digest"])
    scored_after: int | None = None
    try:
        scores, scored_after = read_running_scores(folder, layout=skip_list.layout)
    except FileNotFoundError:
        scores = np.full(skip_list.num_samples, np.nan, np.float32)
    write_manifest(target, skip_list, scores)
    return Exported(
        path=target,
        epoch=record["epoch"],
        kept=skip_list.num_kept,
        samples=skip_list.num_samples,
        scored_after=scored_after,
        finished=bool(run.get("finished")),
    )


def finish_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``run.json`` holds of a run that died after its last epoch, once its folder has all that its end writes.

    Raises:
        FileNotFoundError, ValueError: as :func:`export_manifest`.
    """
    run = read_run(folder)
    if pruned_epochs(run):
        export_manifest(folder)
    run["finished"] = True
    write_bytes(join(folder, RUN_FILE), run_to_bytes(run))
    return run
