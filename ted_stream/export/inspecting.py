"""What a path holds, as a summary: a skip-list, the folder of a run, a manifest, scores, or a dataset."""

import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ted_stream.export.classes import class_rows, count_kept
from ted_stream.export.dataset_files import DESCRIPTION, find_splits
from ted_stream.export.findings import read_findings
from ted_stream.export.history import Decisions
from ted_stream.export.manifest import open_manifest
from ted_stream.export.rows import PLAIN
from ted_stream.export.run_files import RUN_FILE
from ted_stream.export.stream_index import INDEX
from ted_stream.export.summary import spread, summary_of_scores
from ted_stream.files import exists, is_remote, join, read_bytes
from ted_stream.skip_list import SkipList, read_skip_list
from ted_stream.skip_list.kinds import MANIFEST, RUNNING_SCORES, SCORES, SKIP_LIST, kind_of

__all__ = ["Place", "find", "summary_of"]

_SCORES_FILE = "scores.parquet"  # in a folder of `ted-stream score`
_RUN, _DATASET = "a run", "a dataset"
Place = tuple[str, str]


def summary_of(
    path: str | os.PathLike[str], *, number: int = 10, data: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Numbers and words, as JSON holds them, of what lies at a path.

    Args:
        path: of a file or folder, local or a URI.
        number: of samples to name of each sort, at least 0.
        data: of the dataset that a run trained on, for classes.

    Returns:
        ``kind``, and by it, in the words of the file itself:

        - ``run``: of ``run.json`` all but its epochs; ``epochs`` with what each kept beside the one before
          (:class:`~ted_stream.export.history.EpochChange`); ``shards``, ``classes``, ``scores``; ``highest``,
          ``lowest`` and ``contested`` samples; ``notes``.
        - ``skip-list``: ``samples``, ``kept``, ``epoch``, ``keep_ratio``, ``method``, ``run``, ``dataset``,
          ``weights``, ``shards``.
        - ``manifest``: ``kept``, ``method``, ``shards``, ``scores``; ``highest`` and ``lowest`` samples.
        - ``scores``: see :func:`~ted_stream.export.summary.summary_of_scores`.
        - ``running scores``: ``samples``, ``epoch``, ``dataset``, ``scores``; ``highest`` and ``lowest`` ids.
        - ``dataset``: ``splits``, each with ``samples``, ``shards``, ``bytes``, ``columns``, ``classes``.

    Raises:
        FileNotFoundError: there is nothing, or a folder of something else.
        ValueError: ``number`` is negative, or a file is damaged or of another kind.
    """
    if number < 0:
        raise ValueError(f"number is {number}, but it must be at least 0: it is how many samples are named.")
    kind, place = find(path)
    if kind == _RUN:
        return _of_run(place, number, data)
    if kind == SKIP_LIST:
        return _of_list(read_skip_list(place))
    if kind == MANIFEST:
        return _of_manifest(place, number)
    if kind == SCORES:
        return summary_of_scores(place, number=number)
    if kind == RUNNING_SCORES:
        return _of_running_scores(place, number)
    return _of_dataset(place)


def find(path: str | os.PathLike[str]) -> Place:
    """What lies at a path, in the words of :mod:`ted_stream.skip_list.kinds`, "a run" or "a dataset"; and where.

    Raises:
        FileNotFoundError, ValueError: as :func:`summary_of`.
    """
    text = os.fspath(path).rstrip("/") or "/"
    if Path(text).name in (RUN_FILE, INDEX, DESCRIPTION):
        text = text.rpartition("/")[0] or "."
    if not is_remote(text) and not Path(text).exists():
        raise FileNotFoundError(f"There is neither file nor folder {text!r}; check the path.")
    if Path(text).is_dir() or (is_remote(text) and not text.endswith(".parquet")):
        return _find_in(text)
    data = read_bytes(text)
    try:
        kind = kind_of(pq.ParquetFile(pa.BufferReader(data)).metadata.metadata)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{text} is no Parquet file, or damaged ({error}); {_KNOWN}.") from error
    if kind is None:
        raise ValueError(f"{text} is a Parquet file of another program; {_KNOWN}.")
    return kind, text


_KNOWN = "skip-lists, manifests, scores, folders of runs and datasets of shards can be inspected"


def _find_in(folder: str) -> Place:
    for name, kind in ((RUN_FILE, _RUN), (_SCORES_FILE, SCORES), (DESCRIPTION, _DATASET), (INDEX, _DATASET)):
        if exists(join(folder, name)):
            return kind, join(folder, name) if kind == SCORES else folder
    raise FileNotFoundError(
        f"{folder} holds none of {RUN_FILE}, {_SCORES_FILE}, {DESCRIPTION} and {INDEX}, so it is neither the folder of "
        f"a run that prunes nor a dataset; {_KNOWN}."
    )


def _of_run(folder: str, number: int, data: str | os.PathLike[str] | None) -> dict[str, Any]:
    found = read_findings(folder, data=data)
    summary: dict[str, Any] = {
        "kind": "run",
        "folder": folder,
        **{name: value for name, value in found.run.items() if name not in ("epochs", "job")},
        "epochs_done": found.epochs_done,
        "warnings": {str(e["epoch"]): e["warnings"] for e in found.run["epochs"] if e.get("warnings")},
        "epochs": [asdict(epoch) for epoch in found.epochs],
        "last_pruned": None,
        "shards": [],
        "classes": found.classes(),
        "scores": None,
        "notes": list(found.notes),
    }
    if found.decisions is not None:
        summary["last_pruned"] = found.decisions.epochs[-1] if found.is_pruned else None
        summary["shards"] = _shards(found.decisions.last, found.decisions)
    if found.scores is not None:
        known = found.scores[~np.isnan(found.scores)]
        summary["scores"] = {"epoch": found.scored_after, "unknown": len(found.scores) - len(known), **spread(known)}
    return summary | {name: found.samples(ids) for name, ids in found.extremes(number).items()}


def _of_list(skip_list: SkipList) -> dict[str, Any]:
    weights = skip_list.weights
    return {
        "kind": "skip-list",
        "samples": skip_list.num_samples,
        "kept": skip_list.num_kept,
        "epoch": skip_list.epoch,
        "keep_ratio": skip_list.keep_ratio,
        "method": skip_list.method,
        "run": skip_list.run,
        "dataset": skip_list.layout.fingerprint,
        "digest": skip_list.digest,
        "format_version": skip_list.format_version,
        "weights": None if weights is None else spread(weights),
        "shards": _shards(skip_list),
    }


def _shards(skip_list: SkipList, decisions: Decisions | None = None) -> list[dict[str, Any]]:
    """Of each shard the samples, those kept and their share, and over all pruned epochs of a run the mean share."""
    layout = skip_list.layout
    streams = [key for key, stream in zip(layout.stream_keys, layout.streams, strict=True) for _ in stream.shards]
    rows: list[dict[str, Any]] = [
        {"stream": key, "shard": shard.name, "samples": shard.samples, "kept": kept, "share": kept / shard.samples}
        for key, shard, kept in zip(streams, layout.shards, skip_list.kept_per_shard.tolist(), strict=True)
    ]
    if decisions is not None:
        totals = np.add.reduceat(decisions.times_kept, layout.shard_offsets, dtype=np.int64)
        for row, total in zip(rows, totals.tolist(), strict=True):
            row["mean_share"] = total / (row["samples"] * len(decisions.epochs))
    return rows


_OF_MANIFEST = ("samples", "fingerprint", "run", "method", "settings", "epoch", "skip_list", "scored_after", "digest")


def _of_manifest(path: str, number: int) -> dict[str, Any]:
    with open_manifest(path) as manifest:
        manifest.check()
        table = pa.Table.from_batches(manifest.batches(), PLAIN)
    table = table.filter(table["kept"])
    counts = table.group_by(["stream", "shard"], use_threads=False).aggregate([("position", "count")])
    summary = {
        "kind": "manifest",
        "kept": manifest.kept,
        **{name: getattr(manifest, name) for name in _OF_MANIFEST},
        "selection": json.loads(manifest.selection.to_json()),
        "shards": [
            {"stream": row["stream"], "shard": row["shard"], "kept": row["position_count"]}
            for row in counts.to_pylist()
        ],
    }
    known = table.filter(table["score"].is_valid())
    values = known["score"].to_numpy() if len(known) else np.empty(0, np.float32)
    summary["scores"] = {"unknown": len(table) - len(known), **spread(values)}
    order = np.argsort(values, kind="stable")
    number = min(number, len(order))
    for name, rows in (("highest", order[::-1][:number]), ("lowest", order[:number])):
        summary[name] = known.take(pa.array(rows)).to_pylist()
    return summary


def _of_running_scores(path: str, number: int) -> dict[str, Any]:
    table = pq.read_table(io.BytesIO(read_bytes(path)), use_threads=False)
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    scores = table["score"].to_numpy().astype(np.float32)
    known = np.flatnonzero(~np.isnan(scores))
    order = known[np.argsort(scores[known], kind="stable")]
    number = min(number, len(order))
    return {
        "kind": "running scores",
        "samples": len(scores),
        "epoch": int(metadata["ted_stream.running_scores.epoch"]),
        "dataset": metadata["ted_stream.running_scores.fingerprint"],
        "scores": {"unknown": len(scores) - len(known), **spread(scores[known])},
        "highest": [{"sample_id": int(at), "score": float(scores[at])} for at in order[::-1][:number]],
        "lowest": [{"sample_id": int(at), "score": float(scores[at])} for at in order[:number]],
    }


def _of_dataset(path: str) -> dict[str, Any]:
    splits, description = [], {}
    for name, split in find_splits(path).items():
        description = split.description
        notes, classes = [], []
        try:
            labels = split.labels()
            classes = class_rows(labels, [(0, count_kept(labels))], split.class_names)
        except (OSError, ValueError) as error:
            notes.append(f"Classes could not be read: {error}.")
        layout, first = split.layout, split.shards[0]
        names = zip(first.get("column_names") or (), first.get("column_encodings") or (), strict=True)
        splits.append(
            {
                "name": name,
                "path": split.path,
                "samples": layout.num_samples,
                "shards": layout.num_shards,
                "bytes": sum(shard.size for shard in layout.shards),
                "format": first.get("format"),
                "compression": first.get("compression"),
                "columns": dict(names),
                "hashed": all(shard.content for shard in layout.shards),
                "fingerprint": layout.fingerprint,
                "classes": [{key: row[key] for key in ("label", "name", "samples")} for row in classes],
                "notes": notes,
            }
        )
    told = {key: description.get(key) for key in ("name", "kind", "notes") if description.get(key)}
    return {
        "kind": "dataset",
        "path": path,
        **{f"corpus_{key}": value for key, value in told.items()},
        "splits": splits,
    }
