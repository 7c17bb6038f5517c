"""What a run folder holds, by name, and how it is read."""

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ted_stream.export.stream_index import INDEX, read_index
from ted_stream.files import exists, is_remote, join, read_bytes
from ted_stream.skip_list import DatasetLayout

__all__ = [
    "LISTS",
    "MANIFEST",
    "RUN_FILE",
    "SCORES",
    "UnreadableRunError",
    "check_outside",
    "check_target",
    "list_name",
    "pruned_epochs",
    "read_run",
    "read_running_scores",
    "run_to_bytes",
    "running_scores_to_bytes",
]

RUN_FILE, LISTS, SCORES, MANIFEST = "run.json", "skip_lists", "running_scores.parquet", "manifest.parquet"
_EPOCH, _FINGERPRINT = b"ted_stream.running_scores.epoch", b"ted_stream.running_scores.fingerprint"
_SHAPE = b"ted_stream.running_scores.shape"  # where the fingerprint takes in the content of shards

# What else a run and its trainer put there: config and result of a recipe, checkpoints, scores of a scoring.
_OWN = (RUN_FILE, LISTS, SCORES, "checkpoints", "scores", "config.yaml", "result.json", "metrics.json")
_OWN += ("asked.json", "score.json")


class UnreadableRunError(ValueError):
    """A ``run.json`` is there, and damaged or something else."""


def check_target(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Refuse to write an export over a file that the run goes on from, or is told by; its manifest may be replaced.

    Args:
        folder: of the run, a local path or a URI.
        target: path or URI of the file that is to be written.

    Raises:
        ValueError: if that is one of the run's files, or lies among its skip-lists or checkpoints; or a shard
            of a dataset.
        IsADirectoryError: if it is a folder.
    """
    check_outside(folder, target)
    if not is_remote(target) and os.path.isdir(target):
        raise IsADirectoryError(
            f"{os.fspath(target)} is a folder; name a file, such as {join(os.fspath(target), MANIFEST)}."
        )
    folder_of_target, _, name = os.fspath(target).rpartition("/")
    if name != INDEX and exists(target) and exists(join(folder_of_target or ".", INDEX)):
        shards = read_index(folder_of_target or ".")["shards"]
        parts = [shard.get(part) for shard in shards for part in ("raw_data", "zip_data")]
        if name in {part["basename"] for part in parts if part}:
            raise ValueError(f"{os.fspath(target)} is a shard of a dataset; name another file.")


def check_outside(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Refuse a path or URI of what is to be written that is one of the run's own files or folders.

    Arguments as of :func:`check_target`.

    Raises:
        ValueError: if it is, or lies among its skip-lists or checkpoints.
    """
    root, path = (os.fspath(text) if is_remote(text) else os.path.realpath(text) for text in (folder, target))
    inside = path.removeprefix(f"{root.rstrip('/')}/")
    if inside != path and inside.split("/")[0] in _OWN:
        raise ValueError(
            f"{os.fspath(target)} is a file of the run itself, which cannot be read without it; name another, such as "
            f"{join(folder, MANIFEST)}."
        )


def list_name(epoch: int) -> str:
    """The file of an epoch's skip-list."""
    return f"{LISTS}/ep{epoch:04d}.parquet"


def run_to_bytes(run: Mapping[str, Any]) -> bytes:
    """The file ``run.json``."""
    return json.dumps(run, indent=1).encode()


def pruned_epochs(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of the epochs that left something out, of what ``run.json`` holds."""
    return [record for record in run["epochs"] if record["kept"] < run["samples"]]


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``run.json`` of a run folder holds.

    Raises:
        FileNotFoundError: if there is none.
        NotADirectoryError: if the folder is a file.
        UnreadableRunError: if it is damaged.
        ValueError: if nothing can be read from such a URI.
    """
    path = join(folder, RUN_FILE)
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds no {RUN_FILE}, so it is no folder of a pruned run; give one, such as "
            "ted_stream_runs/<run name>."
        ) from error
    except NotADirectoryError as error:
        raise NotADirectoryError(
            f"{os.fspath(folder)} is a file; give the folder of a pruned run, such as ted_stream_runs/<run name>."
        ) from error
    try:
        run = json.loads(data)
    except ValueError as error:
        raise UnreadableRunError(f"{path} is damaged ({error}); put back the file that the run wrote.") from error
    if not isinstance(run, dict) or not isinstance(run.get("epochs"), list):
        raise UnreadableRunError(f"{path} is not what a pruned run writes: it holds no epochs; give another folder.")
    return run


def running_scores_to_bytes(scores: NDArray[np.float32], *, epoch: int, layout: DatasetLayout) -> bytes:
    """The file of the scores after an epoch: one column ``score``, float32, null where a sample was never measured.

    Args:
        scores: (N,) float32 by sample id, NaN where never measured.
        epoch: 0-based, that they were folded after.
        layout: of the dataset.
    """
    column = pa.array(scores, pa.float32(), mask=np.isnan(scores))
    metadata = {_EPOCH: str(epoch), _FINGERPRINT: layout.fingerprint}
    table = pa.table({"score": column}, metadata=metadata | ({_SHAPE: layout.shape} if layout.knows_content else {}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def read_running_scores(folder: str | os.PathLike[str], *, layout: DatasetLayout) -> tuple[NDArray[np.float32], int]:
    """The scores that a run folder holds, (N,) float32 by sample id with NaN where never measured, and their epoch.

    Raises:
        FileNotFoundError: if there are none: the method measures nothing, or no epoch has ended.
        ValueError: if they are damaged, or of another dataset.
    """
    path = join(folder, SCORES)
    data = read_bytes(path)
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
        metadata = table.schema.metadata
        epoch, fingerprint = int(metadata[_EPOCH]), metadata[_FINGERPRINT].decode()
        shape = metadata.get(_SHAPE, metadata[_FINGERPRINT]).decode()
        scores = table["score"].to_numpy().astype(np.float32)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); put back the file that the run wrote.") from error
    # A run that an earlier version began has lists without content beside scores with it.
    agree = shape == layout.shape and (fingerprint == shape or not layout.knows_content)
    if not (fingerprint == layout.fingerprint or agree) or len(scores) != layout.num_samples:
        raise ValueError(
            f"{path} has {len(scores)} scores of dataset {fingerprint}, but the run is of {layout.fingerprint}; put "
            "back the file that the run wrote."
        )
    return scores, epoch
