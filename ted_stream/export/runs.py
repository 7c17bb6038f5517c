"""Lists of samples from run folders: of a run that has finished, was killed, or is still at work."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ted_stream.export.formats import FORMATS, Task
from ted_stream.export.origins import ORIGINS, find_origins
from ted_stream.export.run_files import MANIFEST, RUN_FILE, check_target, pruned_epochs, read_run, run_to_bytes
from ted_stream.export.selected import Progress, Written, select
from ted_stream.export.selection import Selection
from ted_stream.export.stream_index import INDEX
from ted_stream.files import exists, join, write_bytes, writing

__all__ = ["Exported", "export_run", "finish_run"]


@dataclass(frozen=True, kw_only=True)
class Exported(Written):
    """What :func:`export_run` wrote.

    Attributes:
        scored_after: the epoch after which the scores were; ``None`` where there are none.
    """

    scored_after: int | None


def export_run(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    to: str = "parquet",
    selection: Selection | None = None,
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    all_samples: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Exported:
    """Write which samples a run kept, from what lies in its folder: whole or not at all, in bounded memory.

    A run that ends writes the manifest of the last epoch that it pruned.

    Args:
        run: its folder, a local path or a URI.
        path: of what is written, local or a URI; by default ``manifest.parquet`` in the folder.
        to: the format, one of `FORMATS`.
        selection: which samples; by default those that the last pruned epoch kept.
        dataset: the folder of the dataset that the run read, or those of its streams, by whose ``origins.parquet``
            samples have names; without it samples go by stream, shard and position.
        all_samples: list those that are not kept, too, with ``kept`` false; of manifests, CSV and JSON lines.
        overwrite: replace a file that is there; the folder's own is replaced anyway by that of the last pruned epoch.
        progress: of the stages ``lists`` and ``rows``.

    Raises:
        FileExistsError: if there is a file already.
        IsADirectoryError: if the path is that of a folder.
        FileNotFoundError: if the folder is none of a run, the dataset none of streaming's, or a file is missing.
        ValueError: if there is no such format or selection, names are missing that the format takes, or a file is
            damaged, of another dataset, or to be written over though it is the run's own.
    """
    form = FORMATS.get(to)
    if form is None:
        raise ValueError(f"there is no format {to!r}; there is {', '.join(FORMATS)}.")
    if path is None and to != "parquet":
        raise ValueError(f"{to} needs the path of a file to write, or a URI: --out (path=).")
    if all_samples and not form.lists_all:
        able = ", ".join(name for name, of in FORMATS.items() if of.lists_all)
        raise ValueError(f"{to} cannot say which samples are not kept, so it lists no others; {able} can.")
    if path is not None:
        check_target(run, path)
    selection = selection or Selection()
    target = join(run, MANIFEST) if path is None else os.fspath(path)
    if not overwrite and not (path is None and selection == Selection()) and exists(target):
        raise FileExistsError(f"{target} exists; name another file, or pass overwrite=True (--overwrite).")
    selected = select(run, selection, count=form.counts, progress=progress)
    origins, folders = find_origins(dataset, selected.layout)
    if target in [join(folder, INDEX) for folder in folders if folder is not None]:
        raise ValueError(f"{target} is the index of the dataset itself; name a file in another folder.")
    task = Task(selected=selected, origins=origins, folders=folders, all_samples=all_samples, progress=progress)
    with writing(target) as file:
        notes = form.write(file, task)
    if form.lists_all and origins.known < len(origins.paths):
        notes.append(_unnamed(task))
    if form.counts and selected.times_kept is None:
        notes.append("how often samples were kept is not known: a skip-list of another epoch is gone")
    return Exported(
        path=target,
        to=to,
        selection=selection,
        epoch=selected.epoch,
        kept=selected.num_kept,
        samples=selected.num_samples,
        scored_after=selected.scored_after,
        finished=selected.finished,
        notes=tuple(notes),
    )


def _unnamed(task: Task) -> str:
    """Why samples have no names."""
    origins = task.origins
    some = "samples" if not origins.known else f"samples of {len(origins.paths) - origins.known} streams"
    given = [folder for folder, path in zip(task.folders, origins.paths, strict=True) if folder and not path]
    if given:
        return f"{some} go by stream, shard and position: {given[0]} has no {ORIGINS}, as prepare and index write it"
    return f"{some} go by stream, shard and position: --dataset (dataset=) names where they came from"


def finish_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``run.json`` holds of a run that died after its last epoch, once its folder has all that its end writes.

    Raises:
        FileNotFoundError, ValueError: as :func:`export_run`.
    """
    run = read_run(folder)
    if pruned_epochs(run):
        export_run(folder)
    run["finished"] = True
    write_bytes(join(folder, RUN_FILE), run_to_bytes(run))
    return run
